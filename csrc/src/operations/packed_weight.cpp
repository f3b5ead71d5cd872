#include "operations/packed_weight.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "operations/lanes.h"
#include "operations/parallel.h"

namespace nsn::detail {

namespace {

using kernels::kHalfPanel;
using kernels::kPanel;

}  // namespace

PackedWeight::PackedWeight(const at::Tensor& weight) : out_(weight.size(0)), in_(weight.size(1)) {
  at::Tensor taps = weight.unsqueeze(1);  // (out, taps, in)
  if (weight.dim() == 4) {
    height_ = weight.size(2);
    width_ = weight.size(3);
    taps = weight.permute({0, 2, 3, 1}).reshape({out_, height_ * width_, in_});
  }
  const int64_t inner = in_ * height_ * width_;
  panels_ =
      at::zeros({(out_ + kHalfPanel - 1) / kHalfPanel * kHalfPanel * inner}, weight.options());
  for (int64_t first = 0; first < out_; first += kPanel) {
    const int64_t count = std::min(kPanel, out_ - first);
    const int64_t width = kernels::panel_width(count);
    panels_.narrow(0, first * inner, inner * width)
        .view({height_ * width_, in_, width})
        .narrow(2, 0, count)
        .copy_(taps.narrow(0, first, count).permute({1, 2, 0}));
  }
}

at::Tensor PackedWeight::multiply(const at::Tensor& x, int64_t out,
                                  const kernels::Epilogue& epilogue) const {
  const at::Tensor rows = as_rows(x);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = out;
  at::Tensor y = at::detail::empty_cpu(shape, at::kFloat);
  kernels::run(kernels::Product{rows.const_data_ptr<float>(), rows.stride(0), rows.size(0),
                                rows.size(1), out, panels_.const_data_ptr<float>(), in_, out_,
                                epilogue, y.mutable_data_ptr<float>(), out},
               parallel_for);
  return y;
}

at::Tensor PackedWeight::convolve(const at::Tensor& x, int64_t out, const PackedGeometry& geometry,
                                  const kernels::Epilogue& epilogue) const {
  const at::Tensor last = x.permute({0, 2, 3, 1}).contiguous();  // (B, H, W, in)
  const auto& [stride, padding, dilation] = geometry;
  const auto extent = [&](int64_t size, int64_t kernel, size_t d) {
    const int64_t reach = geometry.dilation[d] * (kernel - 1) + 1;
    return (size + 2 * geometry.padding[d] - reach) / geometry.stride[d] + 1;
  };
  const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t out_height = extent(height, height_, 0), out_width = extent(width, width_, 1);
  const std::vector<float> zeros(static_cast<size_t>(channels), 0.0F);
  const kernels::Positions positions{zeros.data(), height, width,  out_height, out_width,
                                     height_,      width_, stride, padding,    dilation};
  at::Tensor y = at::detail::empty_cpu({batch, out_height, out_width, out}, at::kFloat);
  kernels::run(
      kernels::Product{last.const_data_ptr<float>(), channels, batch * out_height * out_width,
                       channels, out, panels_.const_data_ptr<float>(), in_, out_, epilogue,
                       y.mutable_data_ptr<float>(), out, &positions},
      parallel_for);
  return y.permute({0, 3, 1, 2});
}

}  // namespace nsn::detail
