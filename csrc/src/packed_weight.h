#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

// Products and convolutions with a weight that was laid out for them once, on the CPU in float32.

namespace nsn::detail {

/// What is done to each element z of a product: relu(scale * z + bias), each where it is there.
struct ProductEpilogue {
  /// Of the output features, float32 and contiguous, or null.
  const float* scale = nullptr;
  const float* bias = nullptr;
  bool relu = false;
};

/// Of a convolution of two dimensions.
struct PackedGeometry {
  std::array<int64_t, 2> stride, padding, dilation;
};

/// A weight in panels of 32 output features: for each input feature the panel's 32 weights lie
/// together, the last panel filled up with zeros. One layout serves batches of all sizes: at batch
/// 1 a product reads it once from front to back, and with more rows a panel stays in the cache. It
/// serves leading slices too, whose panels are the leading parts of these.
class PackedWeight {
 public:
  /// Copies a weight of any strides, (out, in) or (out, in, height, width).
  explicit PackedWeight(const at::Tensor& weight);

  int64_t nbytes() const { return static_cast<int64_t>(panels_.nbytes()); }

  /// y = epilogue(x W[:out, :in]^T). x: (*, in), float32; y: (*, out).
  at::Tensor multiply(const at::Tensor& x, int64_t out, const ProductEpilogue& epilogue) const;

  /// y = epilogue(W[:out, :in] * x), the cross-correlation of torch::nn::Conv2d without groups.
  /// x: (B, in, H, W), float32; y: (B, out, H', W'), in channels-last, which is also the format in
  /// which x needs no copy.
  at::Tensor convolve(const at::Tensor& x, int64_t out, const PackedGeometry& geometry,
                      const ProductEpilogue& epilogue) const;

 private:
  int64_t out_, in_;
  /// Of a convolution's kernel; 1 x 1 for a product.
  int64_t height_ = 1, width_ = 1;
  at::Tensor panels_;
};

}  // namespace nsn::detail
