#include "inference/packed_weight.h"

#include <ATen/ops/empty.h>

namespace nsn::detail {

at::Tensor with_taps(const at::Tensor& weight) {
  return weight.dim() == 2 ? weight.unsqueeze(2) : weight.flatten(2);
}

kernels::WeightSource source_of(const at::Tensor& with_taps) {
  kernels::WeightSource source{with_taps.const_data_ptr<float>(), {}, {}};
  for (const size_t d : {0U, 1U, 2U}) {
    source.sizes[d] = with_taps.size(static_cast<int64_t>(d));
    source.strides[d] = with_taps.stride(static_cast<int64_t>(d));
  }
  return source;
}

PackedWeight::PackedWeight(const at::Tensor& weight) {
  const at::Tensor all = with_taps(weight);
  const kernels::WeightSource source = source_of(all);
  sizes_ = source.sizes;
  panels_ = at::empty({kernels::panel_elements(sizes_[0], sizes_[1], sizes_[2])}, weight.options());
  kernels::fill_panels(source, panels_.mutable_data_ptr<float>());
}

}  // namespace nsn::detail
