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
  /// Numbers without a sign, whose overflow is defined: of what lies outside none is used.
  uint64_t from[rows];
  int64_t line[rows], column[rows];

  HWY_INLINE Windows(const Product& p, int64_t first) {
    const Window& at = *p.positions->window;
    const auto [height, width] = at.in_size;
    const auto [out_height, out_width] = at.out_size;
    int64_t out_column = first % out_width, out_line = first / out_width % out_height;
    int64_t sample = first / out_width / out_height;
    for (size_t r = 0; r < rows; ++r) {
      line[r] = out_line * at.stride[0] - at.padding[0];
      column[r] = out_column * at.stride[1] - at.padding[1];
      from[r] = (static_cast<uint64_t>(sample * height + line[r]) * static_cast<uint64_t>(width) +
                 static_cast<uint64_t>(column[r])) *
                static_cast<uint64_t>(p.in);
      if (++out_column < out_width) continue;
      out_column = 0;
      if (++out_line < out_height) continue;
      out_line = 0;
      ++sample;
    }
  }

  /// The channels that a tap reads, `below` and `right` of the first: zeros outside.
  HWY_INLINE void at(const Product& p, int64_t below, int64_t right,
                     const float* (&to)[rows]) const {
    const auto& in_size = p.positions->window->in_size;
    const uint64_t step =
        static_cast<uint64_t>(below * in_size[1] + right) * static_cast<uint64_t>(p.in);
    const auto height = static_cast<uint64_t>(in_size[0]),
               width = static_cast<uint64_t>(in_size[1]);
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      // As unsigned numbers those below 0 are large.
      const bool inside = static_cast<uint64_t>(line[r] + below) < height &&
                          static_cast<uint64_t>(column[r] + right) < width;
      to[r] = inside ? p.x + (from[r] + step) : p.positions->zeros;
    }
  }
};

/// Adds the products of one tap: the rows that begin at `from`, times the weights of `tap` from
/// feature `at` of the panel on.
template <size_t rows, size_t vectors>
HWY_INLINE void add_tap(V (&sum)[rows][vectors], const float* (&from)[rows], const Panel& panel,
                        int64_t tap, int64_t at) {
  const Segment* segment = panel.segments;
  const Segment* const last = segment + panel.segment_count - 1;
  for (;; ++segment) {
    multiply(sum, from, /*step=*/1, segment->weights + tap * segment->tap_stride + at, panel.width,
             segment->in);
    if (segment == last) return;
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) from[r] += segment->in;
  }
}

/// `rows` rows times `vectors` vectors of a panel's features, from the one `begin` on.
template <size_t rows, size_t vectors>
HWY_INLINE void tile(const Product& p, int64_t first, const Panel& panel, int64_t begin) {
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
    add_tap(sum, from, panel, 0, begin);
  } else {
    const Window& at = *p.positions->window;
    const Windows<rows> windows(p, first);
    int64_t tap = 0;
    for (int64_t i = 0; i < at.kernel[0]; ++i) {
      for (int64_t j = 0; j < at.kernel[1]; ++j) {
        windows.at(p, i * at.dilation[0], j * at.dilation[1], from);
        add_tap(sum, from, panel, tap++, begin);
      }
    }
  }
  HWY_UNROLL(8)
  for (size_t v = 0; v < vectors; ++v) {
    const int64_t of_panel = begin + static_cast<int64_t>(v * kLanes);
    const int64_t features = panel.features - of_panel, at = panel.feature + of_panel;
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
  const int64_t taps = p.positions == nullptr ? 1 : p.positions->window->taps();
  const int64_t row_bytes = static_cast<int64_t>(sizeof(float)) * p.in * taps;
  const Tasks tasks(p.rows, p.weight->size(), p.in * taps,
                    kBlockBytes / std::max<int64_t>(1, row_bytes));
  parallel_for(tasks.blocks * tasks.panels, tasks.grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t task = begin; task < end; ++task) {
      const Panel& panel = (*p.weight)[task % tasks.panels];
      const int64_t first = task / tasks.panels * tasks.block_rows;
      const int64_t end_row = std::min(first + tasks.block_rows, p.rows);
      over_rows(first, end_row, [&](auto rows, int64_t row) HWY_ATTR {
        over_panel<rows()>(panel.width, panel.features, [&](auto vectors, int64_t at) HWY_ATTR {
          tile<rows(), vectors()>(p, row, panel, at);
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
