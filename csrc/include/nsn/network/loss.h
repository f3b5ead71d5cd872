#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>

#include <nsn/network/outputs.h>
#include <nsn/values/visibility.h>

namespace nsn {

/// Takes one sub-network's output and the targets, returns a scalar.
using Loss = std::function<at::Tensor(const at::Tensor& output, const at::Tensor& target)>;

/// sum_l w_l * loss(output_l, targets) over the outputs of a joint pass; w_l is 1 where `weights`
/// does not name the sub-network. A weight scales the lane's gradients of parameters and input.
///
/// `loss` defaults to cross entropy, mean over the batch, of logits (B, C, *) and class indices
/// (B, *) (-100 is left out) or probabilities (B, C, *); with indices (B, T) also of logits
/// (B, T, C), as transformers give. Outputs of one shape go through it in one pass. Throws
/// c10::ValueError where there is no output, where a weight names none of them, where the default
/// loss gets one class, or cannot tell which dimension has the classes, or where `loss` returns no
/// scalar.
NSN_API at::Tensor joint_loss(const Outputs& outputs, const at::Tensor& targets,
                              const Loss& loss = nullptr,
                              const std::map<std::string, double>& weights = {});

}  // namespace nsn
