#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "inference/packed_tensors.h"
#include "nsn/program/program.h"

namespace nsn::detail {

/// A sub-network's program over a pack's tensors: what stands behind a product or convolution
/// (scale, shift, activation) is its epilogue where it has one, and each value is let go of behind
/// its last use. Constant once the tensors are filled.
class PackedProgram {
 public:
  /// Says what it will read of `tensors`, which stay where they are. `program` too has to, until
  /// they are filled.
  PackedProgram(const Program& program, const std::string& name, size_t subnetwork,
                PackedTensors& tensors);

  /// y for a batch x: (B, *input).
  at::Tensor operator()(const at::Tensor& x) const;

  /// Makes a step's output of its inputs, which it may take over.
  using Operation = std::function<at::Tensor(std::vector<at::Tensor>& inputs)>;

 private:
  struct PackedStep {
    Operation run;
    std::vector<size_t> inputs;
    size_t output;
  };
  std::vector<PackedStep> steps_;
  /// For each value the place of the last step that reads it.
  std::vector<size_t> last_use_;
  size_t output_ = 0;
};

}  // namespace nsn::detail
