#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "inference/packed_tensors.h"
#include "nsn/program/program.h"
#include "plan/run.h"

namespace nsn::detail {

/// A sub-network's program over a pack's tensors. Constant once these are filled.
class PackedProgram {
 public:
  virtual ~PackedProgram() = default;
  PackedProgram(const PackedProgram&) = delete;
  PackedProgram& operator=(const PackedProgram&) = delete;

  /// y for a batch x: (B, *input).
  virtual at::Tensor operator()(const at::Tensor& x) const = 0;

  /// The same into `out`, contiguous. Throws c10::ValueError where it has another shape or dtype.
  virtual void operator()(const at::Tensor& x, const at::Tensor& out) const = 0;

 protected:
  PackedProgram() = default;
};

/// Says what the program will read of `tensors`, which stay where they are, as `program` has to
/// until they are filled. With `has_kernels` it runs as a plan, where there is one; else step by
/// step, by plain operations.
std::unique_ptr<const PackedProgram> pack_program(const Program& program, const std::string& name,
                                                  size_t subnetwork, bool has_kernels,
                                                  PackedTensors& tensors);

/// The program of a plan over tensors that stay where they are.
std::unique_ptr<const PackedProgram> mapped_program(const plan::Plan& plan,
                                                    const std::vector<plan::Tensor>& tensors);

}  // namespace nsn::detail
