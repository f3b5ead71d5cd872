#include "inference/packed_weight.h"

#include <ATen/ops/empty.h>

namespace nsn::detail {

PackedWeight::PackedWeight(const at::Tensor& weight) {
  // (out, in, taps); a matrix has one tap.
  const at::Tensor taps = weight.dim() == 2 ? weight.unsqueeze(2) : weight.flatten(2);
  kernels::WeightSource source{taps.const_data_ptr<float>(), {}, {}};
  for (const size_t d : {0U, 1U, 2U}) {
    source.sizes[d] = taps.size(static_cast<int64_t>(d));
    source.strides[d] = taps.stride(static_cast<int64_t>(d));
  }
  sizes_ = source.sizes;
  panels_ = at::empty({kernels::panel_elements(sizes_[0], sizes_[1], sizes_[2])}, weight.options());
  kernels::fill_panels(source, panels_.mutable_data_ptr<float>());
}

}  // namespace nsn::detail
