#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include <nsn/export.h>
#include <nsn/functional/dropout.h>
#include <nsn/merge.h>

namespace nsn::functional {

/// y_l = relu_dropout(x_l W^T + b) for each lane; `after` is the identity by default. x_l: (*, in),
/// W: (out, in), b: (out) or undefined; y_l: (*, out). Lanes of the same input, as `same_as` tells
/// (see ReluDropout), are computed once; the others are stacked into one matrix product, and the
/// rest follows in one pass over its result.
///
/// Backward computes the merged gradient of W as (c * dY)^T X in one product for a linear rule,
/// leaving out lanes whose coefficient is zero. Under autocast the products run in autocast's
/// dtype; gradients come back in the parameters'.
NSN_API std::vector<at::Tensor> linear(at::TensorList inputs, const at::Tensor& weight,
                                       const at::Tensor& bias, c10::ArrayRef<size_t> same_as,
                                       c10::ArrayRef<merge::Lane> lanes, const merge::Rule& rule,
                                       const ReluDropout& after = {}, const Memory& memory = {});

}  // namespace nsn::functional
