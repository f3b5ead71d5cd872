#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include <nsn/functional/linear.h>
#include <nsn/visibility.h>

namespace nsn::functional {

/// Of a convolution, one number a dimension.
struct ConvGeometry {
  std::vector<int64_t> stride, padding, dilation;
};

/// y_l = W_l * x_l + b_l for each lane, the cross-correlation of torch::nn::Conv1d and Conv2d
/// without groups. W_l and b_l are the lane's slices of W: (out, in, *kernel) and b: (out) or
/// undefined. x_l: (B, kept in, *), y_l: (B, kept out, *).
///
/// Lanes of the same input are computed once, at the widest, narrower ones having the leading
/// channels. Two-dimensional ones run, and come out, in the channels-last memory format, which is
/// the faster one on CPUs. Backward computes the merged gradient of W into one buffer; lanes of the
/// same input share its product where the rule is linear.
NSN_API std::vector<at::Tensor> convolution(at::TensorList inputs, const at::Tensor& weight,
                                            const at::Tensor& bias, const SharedLanes& lanes,
                                            const ConvGeometry& geometry);

}  // namespace nsn::functional
