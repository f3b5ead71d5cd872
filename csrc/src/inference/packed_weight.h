#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace nsn::detail {

/// A weight of float32 in panels of 32 output features (kernels/product.h). One layout serves
/// batches of all sizes: at batch 1 a product reads it once from front to back, and with more rows
/// a panel stays in the cache. It serves leading slices too, whose panels are the leading parts of
/// these, and all levels of vectors.
class PackedWeight {
 public:
  /// Copies a weight of any strides, (out, in) or (out, in, height, width).
  explicit PackedWeight(const at::Tensor& weight);

  const float* data() const { return panels_.const_data_ptr<float>(); }
  int64_t in() const { return in_; }
  int64_t out() const { return out_; }
  int64_t nbytes() const { return static_cast<int64_t>(panels_.nbytes()); }

 private:
  int64_t out_, in_;
  at::Tensor panels_;
};

}  // namespace nsn::detail
