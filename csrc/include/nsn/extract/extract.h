#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nsn/extract/blocks.h>
#include <nsn/program/program.h>
#include <nsn/visibility.h>

// A sub-network by itself, as a module.

namespace nsn {

class Network;

/// A program as a torch::nn::Module with contiguous weights of its own: torch::nn modules where
/// torch has them, named after their blocks, with what is done between them. "output" for a block
/// that is one step, "hidden_linear", "hidden_activation", "stage_conv_dropout" for one that is
/// several: the names of Python's copy, with '_' for '.'. A parameter that two steps read is one.
class NSN_API ExtractedImpl : public torch::nn::Module {
 public:
  /// `tensors`, which become the module's own, are what the operands mean by their places: whole,
  /// of the operands' shapes. The default generator is left as it was. Throws c10::ValueError for a
  /// block that is not nsn's, and where two modules would have one name.
  ExtractedImpl(Program program, std::vector<at::Tensor> tensors);

  /// y for a batch x: (B, *input) -> (B, *output).
  at::Tensor forward(const at::Tensor& x);

  /// What it computes.
  const Program& program() const noexcept { return program_; }

  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

 private:
  class Writer;

  Program program_;
  /// Handles on what is registered.
  std::vector<at::Tensor> tensors_;
  /// Makes each step's output of its inputs.
  std::vector<std::function<at::Tensor(at::TensorList)>> steps_;
};

/// Holds an ExtractedImpl by reference, as torch's modules do.
TORCH_MODULE(Extracted);

/// A sub-network's own copy: the view's outputs, on the network's device, training and frozen as
/// there; a torch::nn::Module as any other to optimizers, torch::save and to(). Throws
/// c10::ValueError for an unknown sub-network, one that was not loaded, blocks of one's own and
/// wrapped modules.
NSN_API Extracted extract(const Network& net, const std::string& subnetwork);

}  // namespace nsn
