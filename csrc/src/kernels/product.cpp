#include "kernels/product.h"

#include <algorithm>
#include <cstddef>

#include "kernels/level.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/product.cpp"
#include "kernels/per_level.h"
// After per_level.h, and once for each level.
#include "kernels/tiles_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

/// The rows of a tile, from the one at `first` on.
template <size_t rows>
HWY_INLINE void begin_rows(const Product& p, int64_t first, const float* (&from)[rows]) {
  for (size_t r = 0; r < rows; ++r) {
    from[r] = p.x + (first + static_cast<int64_t>(r)) * p.x_stride;
  }
}

/// Where the windows of a tile's output positions begin: the input position of the first tap, which
/// may lie outside, and the element at which its channels would begin.
template <size_t rows>
struct Windows {
  const float* from[rows];
  int64_t line[rows], column[rows];

  HWY_INLINE Windows(const Product& p, int64_t first) {
    const Positions& at = *p.positions;
    int64_t out_column = first % at.out_width, out_line = first / at.out_width % at.out_height;
    int64_t sample = first / at.out_width / at.out_height;
    for (size_t r = 0; r < rows; ++r) {
      line[r] = out_line * at.stride[0] - at.padding[0];
      column[r] = out_column * at.stride[1] - at.padding[1];
      from[r] = p.x + ((sample * at.height + line[r]) * at.width + column[r]) * p.in;
      if (++out_column < at.out_width) continue;
      out_column = 0;
      if (++out_line < at.out_height) continue;
      out_line = 0;
      ++sample;
    }
  }

  /// The channels that a tap reads, `below` and `right` of the first: zeros outside.
  HWY_INLINE void at(const Product& p, int64_t below, int64_t right,
                     const float* (&to)[rows]) const {
    const Positions& at = *p.positions;
    const int64_t step = (below * at.width + right) * p.in;
    const auto height = static_cast<uint64_t>(at.height), width = static_cast<uint64_t>(at.width);
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      // As unsigned numbers those below 0 are large.
      const bool inside = static_cast<uint64_t>(line[r] + below) < height &&
                          static_cast<uint64_t>(column[r] + right) < width;
      to[r] = inside ? from[r] + step : at.zeros;
    }
  }
};

/// `rows` rows times `vectors` vectors of output features, from `feature` on.
template <size_t rows, size_t vectors>
HWY_INLINE void tile(const Product& p, int64_t first, int64_t feature, const float* weights,
                     int64_t width) {
  const D d;
  V sum[rows][vectors];
  HWY_UNROLL(8)
  for (size_t r = 0; r < rows; ++r) {
    HWY_UNROLL(8)
    for (size_t v = 0; v < vectors; ++v) sum[r][v] = hn::Zero(d);
  }
  const float* from[rows];
  if (p.positions == nullptr) {
    begin_rows(p, first, from);
    multiply(sum, from, /*step=*/1, weights, width, p.in);
  } else {
    const Positions& at = *p.positions;
    const Windows<rows> windows(p, first);
    for (int64_t i = 0; i < at.kernel_height; ++i) {
      for (int64_t j = 0; j < at.kernel_width; ++j, weights += p.packed_in * width) {
        windows.at(p, i * at.dilation[0], j * at.dilation[1], from);
        multiply(sum, from, /*step=*/1, weights, width, p.in);
      }
    }
  }
  HWY_UNROLL(8)
  for (size_t v = 0; v < vectors; ++v) {
    const int64_t at = feature + static_cast<int64_t>(v * kLanes), features = p.out - at;
    if (features <= 0) break;
    const auto& [scale, bias, relu] = p.epilogue;
    const V factor = scale == nullptr ? hn::Zero(d) : load_part(d, scale + at, features);
    const V shift = bias == nullptr ? hn::Zero(d) : load_part(d, bias + at, features);
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      V z = sum[r][v];
      if (scale != nullptr) z = hn::Mul(z, factor);
      if (bias != nullptr) z = hn::Add(z, shift);
      // "not <= 0" and not "> 0": NaN passes, as through torch's ReLU.
      if (relu) z = hn::IfThenZeroElse(hn::Le(z, hn::Zero(d)), z);
      store_part(d, z, p.y + (first + static_cast<int64_t>(r)) * p.y_stride + at, features);
    }
  }
}

void run_packed(const Product& p, const ParallelFor& parallel_for) {
  // The rows of a block and a panel fit into a cache of the second level.
  constexpr int64_t kBlockBytes = int64_t{1} << 18;
  const int64_t taps =
      p.positions == nullptr ? 1 : p.positions->kernel_height * p.positions->kernel_width;
  const int64_t row_bytes = static_cast<int64_t>(sizeof(float)) * p.in * taps;
  const Tasks tasks(p.rows, p.out, p.in * taps, kBlockBytes / std::max<int64_t>(1, row_bytes));
  parallel_for(tasks.blocks * tasks.panels, tasks.grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t feature = task % tasks.panels * kPanel;
      const int64_t first = task / tasks.panels * tasks.block_rows;
      const int64_t width = panel_width(p.packed_out - feature);
      const float* weights = p.panels + feature * p.packed_in * taps;
      const int64_t used = std::min(width, p.out - feature);
      const int64_t end_row = std::min(first + tasks.block_rows, p.rows);
      over_rows(first, end_row, [&](auto rows, int64_t row) HWY_ATTR {
        over_panel<rows()>(width, used, [&](auto vectors, int64_t at) HWY_ATTR {
          tile<rows(), vectors()>(p, row, feature + at, weights + at, width);
        });
      });
    }
  });
}

}  // namespace

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

void run(const Product& product, const ParallelFor& parallel_for) {
  NSN_AT_LEVEL(run_packed)(product, parallel_for);
}

}  // namespace nsn::kernels
#endif
