#pragma once

#include <torch/nn/module.h>

#include <vector>

namespace nsn::detail {

/// A module's parameters, then its buffers: the order in which a wrapped module's stand in a table.
inline std::vector<at::Tensor> tensors_of(const torch::nn::Module& module) {
  std::vector<at::Tensor> result = module.parameters();
  for (at::Tensor& buffer : module.buffers()) result.push_back(buffer);
  return result;
}

}  // namespace nsn::detail
