#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

#include "kernels/product.h"

// Products and convolutions with a weight that was laid out for them once, on the CPU in float32.

namespace nsn::detail {

/// Of a convolution of two dimensions.
struct PackedGeometry {
  std::array<int64_t, 2> stride, padding, dilation;
};

/// A weight in panels of 32 output features (kernels/product.h). One layout serves batches of all
/// sizes: at batch 1 a product reads it once from front to back, and with more rows a panel stays
/// in the cache. It serves leading slices too, whose panels are the leading parts of these, and all
/// levels of vectors.
class PackedWeight {
 public:
  /// Copies a weight of any strides, (out, in) or (out, in, height, width).
  explicit PackedWeight(const at::Tensor& weight);

  int64_t nbytes() const { return static_cast<int64_t>(panels_.nbytes()); }

  /// y = epilogue(x W[:out, :in]^T). x: (*, in), float32; y: (*, out).
  at::Tensor multiply(const at::Tensor& x, int64_t out, const kernels::Epilogue& epilogue) const;

  /// y = epilogue(W[:out, :in] * x), the cross-correlation of torch::nn::Conv2d without groups.
  /// x: (B, in, H, W), float32; y: (B, out, H', W'), in channels-last, which is also the format in
  /// which x needs no copy.
  at::Tensor convolve(const at::Tensor& x, int64_t out, const PackedGeometry& geometry,
                      const kernels::Epilogue& epilogue) const;

 private:
  int64_t out_, in_;
  /// Of a convolution's kernel; 1 x 1 for a product.
  int64_t height_ = 1, width_ = 1;
  at::Tensor panels_;
};

}  // namespace nsn::detail
