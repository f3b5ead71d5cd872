#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

// Matrix products with a weight that was laid out for them once, on the CPU in float32.

namespace nsn::detail {

/// What is done to each element z of a product: relu(scale * z + bias), each where it is there.
struct ProductEpilogue {
  /// Of the output features, float32 and contiguous, or null.
  const float* scale = nullptr;
  const float* bias = nullptr;
  bool relu = false;
};

/// W: (out, in), in panels of 32 output features: for each input feature the panel's 32 weights lie
/// together, the last panel, of 32 or 16, filled up with zeros. One layout serves batches of all
/// sizes: at batch 1 a product reads it once from front to back, and with more rows a panel stays
/// in the cache.
class PackedWeight {
 public:
  /// Copies the weight, which may have any strides.
  explicit PackedWeight(const at::Tensor& weight);

  int64_t out_features() const { return out_; }
  int64_t in_features() const { return in_; }
  int64_t nbytes() const { return static_cast<int64_t>(panels_.nbytes()); }

  /// y = epilogue(x W^T). x: (*, in), float32; y: (*, out).
  at::Tensor multiply(const at::Tensor& x, const ProductEpilogue& epilogue) const;

 private:
  int64_t out_, in_;
  at::Tensor panels_;
};

}  // namespace nsn::detail
