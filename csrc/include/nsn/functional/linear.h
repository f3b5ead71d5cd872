#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include <nsn/functional/relu_dropout.h>
#include <nsn/values/layout.h>
#include <nsn/values/merge.h>
#include <nsn/visibility.h>

namespace nsn::functional {

/// The lanes that share a parameter in one operation.
struct SharedLanes {
  std::vector<merge::Lane> lanes;
  merge::Rule rule;
  /// What each lane keeps of the parameter. Default: empty, all of it.
  std::vector<Layout> slices = {};
  /// Lanes of the same input share its forward: see ReluDropout::same_as.
  std::vector<size_t> same_as = {};
};

/// y_l = relu_dropout(x_l W_l^T + b_l) for each lane; `after` is the identity by default. W_l and
/// b_l are the lane's slices of W: (out, in) and b: (out) or undefined. x_l: (*, kept in), y_l: (*,
/// kept out).
///
/// Lanes of the same input are computed once, at the widest, narrower ones having the leading
/// columns; lanes of equal slices are stacked into one matrix product; slices that are leading are
/// strided views of W. What follows the product is one pass over its result.
///
/// Backward computes the merged gradient of W into one buffer, as (c * dY)^T X for a linear rule:
/// narrow lanes accumulate into its leading part, lanes whose coefficient is zero are left out.
/// Under autocast the products run in autocast's dtype; gradients come back in the parameters'.
NSN_API std::vector<at::Tensor> linear(at::TensorList inputs, const at::Tensor& weight,
                                       const at::Tensor& bias, const SharedLanes& lanes,
                                       const ReluDropout& after = {}, const Memory& memory = {});

/// y_l = gelu(x_l W_l^T + b_l), as above; gelu(z) = z Phi(z) with the normal distribution's Phi. In
/// float32 on the CPU the bias, the function and its derivative are one pass over the product, and
/// the backward is a product with that derivative.
NSN_API std::vector<at::Tensor> linear_gelu(at::TensorList inputs, const at::Tensor& weight,
                                            const at::Tensor& bias, const SharedLanes& lanes,
                                            const Memory& memory = {});

}  // namespace nsn::functional
