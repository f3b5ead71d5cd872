#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace nsn::detail {

/// sum_l w_l * mean over the batch of the cross entropy of logits_l: (B, C), class indices targets:
/// (B), -100 left out. One pass over the logits of all lanes computes the loss and its gradient,
/// which lies ready, one lane behind the other, when backward asks for it.
at::Tensor joint_cross_entropy(const std::vector<at::Tensor>& logits, const at::Tensor& targets,
                               const std::vector<double>& weights);

/// Whether it takes these: on the CPU, float or double, few classes, no transform active. (For many
/// classes torch's own, vectorized along a row, is the faster.)
bool takes_joint_cross_entropy(const std::vector<at::Tensor>& logits, const at::Tensor& targets);

}  // namespace nsn::detail
