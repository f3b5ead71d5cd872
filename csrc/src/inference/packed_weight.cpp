#include "inference/packed_weight.h"

#include <ATen/ops/zeros.h>

#include <algorithm>

#include "kernels/product.h"

namespace nsn::detail {

PackedWeight::PackedWeight(const at::Tensor& weight) : out_(weight.size(0)), in_(weight.size(1)) {
  using kernels::kHalfPanel;
  using kernels::kPanel;
  at::Tensor taps = weight.unsqueeze(1);  // (out, taps, in)
  if (weight.dim() == 4) taps = weight.flatten(2).permute({0, 2, 1});
  const int64_t inner = taps.size(1) * in_;
  panels_ =
      at::zeros({(out_ + kHalfPanel - 1) / kHalfPanel * kHalfPanel * inner}, weight.options());
  for (int64_t first = 0; first < out_; first += kPanel) {
    const int64_t count = std::min(kPanel, out_ - first);
    const int64_t width = kernels::panel_width(count);
    panels_.narrow(0, first * inner, inner * width)
        .view({taps.size(1), in_, width})
        .narrow(2, 0, count)
        .copy_(taps.narrow(0, first, count).permute({1, 2, 0}));
  }
}

}  // namespace nsn::detail
