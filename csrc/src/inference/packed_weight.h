#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

#include "kernels/panels.h"

namespace nsn::detail {

/// A weight, (out, in) or (out, in, *kernel), as (out, in, taps); a matrix has one tap.
at::Tensor with_taps(const at::Tensor& weight);

/// The memory of such a one of float32, of any strides; valid as long as the tensor.
kernels::WeightSource source_of(const at::Tensor& with_taps);

/// A weight of float32 in the panels of one box (kernels/panels.h), which serves leading slices
/// too.
class PackedWeight {
 public:
  /// Copies a weight of any strides, (out, in) or (out, in, height, width).
  explicit PackedWeight(const at::Tensor& weight);

  /// A leading slice, valid as long as this.
  kernels::Panels leading(int64_t out, int64_t in) const {
    return {panels_.const_data_ptr<float>(), sizes_, out, in};
  }
  int64_t nbytes() const { return static_cast<int64_t>(panels_.nbytes()); }

 private:
  /// (out, in, taps).
  std::array<int64_t, 3> sizes_;
  at::Tensor panels_;
};

}  // namespace nsn::detail
