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

  HWY_INLINE void begin(const Product& p, int64_t first) {
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

/// What a tile multiplies by of a panel: taps of these rows and columns of the window; to be added
/// to what is in y, or not.
struct Taps {
  int64_t row, end_row, column, end_column;
  bool adds = false;
};

/// All of a product.
Taps all_taps(const Product& p) {
  if (p.positions == nullptr) return {0, 1, 0, 1};
  return {0, p.positions->window->kernel[0], 0, p.positions->window->kernel[1]};
}

/// Adds the products of one tap: the rows that begin at `from`, times the weights of `tap` from
/// feature `at` of the panel on.
template <typename Weight, size_t rows, size_t vectors>
HWY_INLINE void add_tap(V (&sum)[rows][vectors], const float* (&from)[rows], const Panel& panel,
                        int64_t tap, int64_t at) {
  const Segment* segment = panel.segments;
  const Segment* const last = segment + panel.segment_count - 1;
  for (;; ++segment) {
    const auto* weights = static_cast<const Weight*>(segment->weights);
    multiply(sum, from, /*step=*/1, weights + tap * segment->tap_stride + at, panel.width,
             segment->in);
    if (segment == last) return;
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) from[r] += segment->in;
  }
}

/// Adds the products of taps; narrow weights are multiplied as they are in matrices alone.
template <typename Weight, size_t rows, size_t vectors>
HWY_INLINE void add_taps(const Product& p, int64_t first, const Panel& panel, int64_t begin,
                         const Taps& taps, V (&sum)[rows][vectors]) {
  const bool is_matrix = !std::is_same_v<Weight, float> || p.positions == nullptr;
  const float* from[rows];
  Windows<rows> windows;
  if (!is_matrix) windows.begin(p, first);
  const auto [below, right] =
      is_matrix ? std::array<int64_t, 2>{0, 0} : p.positions->window->dilation;
  int64_t tap = 0;
  for (int64_t i = taps.row; i < taps.end_row; ++i) {
    for (int64_t j = taps.column; j < taps.end_column; ++j) {
      if (is_matrix) {
        begin_rows(p, first, from);
      } else {
        windows.at(p, i * below, j * right, from);
      }
      add_tap<Weight>(sum, from, panel, tap++, begin);
    }
  }
}

/// `rows` rows times `vectors` vectors of a panel's features, from the one `begin` on.
template <typename Weight, size_t rows, size_t vectors>
HWY_INLINE void tile(const Product& p, int64_t first, const Panel& panel, int64_t begin,
                     const Taps& taps) {
  const D d;
  float* const y = p.y + first * p.y_stride + panel.feature + begin;
  const int64_t features = panel.features - begin;
  V sum[rows][vectors];
  HWY_UNROLL(8)
  for (size_t r = 0; r < rows; ++r) {
    HWY_UNROLL(8)
    for (size_t v = 0; v < vectors; ++v) sum[r][v] = hn::Zero(d);
  }
  if (taps.adds) {
    HWY_UNROLL(8)
    for (size_t v = 0; v < vectors; ++v) {
      const auto of_tile = static_cast<int64_t>(v * kLanes);
      if (of_tile >= features) break;
      HWY_UNROLL(8)
      for (size_t r = 0; r < rows; ++r) {
        sum[r][v] =
            load_part(d, y + static_cast<int64_t>(r) * p.y_stride + of_tile, features - of_tile);
      }
    }
  }
  add_taps<Weight>(p, first, panel, begin, taps, sum);
  HWY_UNROLL(8)
  for (size_t v = 0; v < vectors; ++v) {
    const auto of_tile = static_cast<int64_t>(v * kLanes);
    const int64_t left = features - of_tile, at = panel.feature + begin + of_tile;
    if (left <= 0) break;
    const auto& [scale, bias, relu] = p.epilogue;
    const V factor = scale == nullptr ? hn::Zero(d) : load_part(d, scale + at, left);
    const V shift = bias == nullptr ? hn::Zero(d) : load_part(d, bias + at, left);
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      V z = sum[r][v];
      if (scale != nullptr) z = hn::Mul(z, factor);
      if (bias != nullptr) z = hn::Add(z, shift);
      // "not <= 0" and not "> 0": NaN passes, as through torch's ReLU.
      if (relu) z = hn::IfThenZeroElse(hn::Le(z, hn::Zero(d)), z);
      store_part(d, z, y + static_cast<int64_t>(r) * p.y_stride + of_tile, left);
    }
  }
}

/// Rows [first, end) times a panel of float32.
HWY_NOINLINE void multiply_rows(const Product& p, const Panel& panel, int64_t first, int64_t end,
                                const Taps& taps) {
  over_rows(first, end, [&](auto rows, int64_t row) HWY_ATTR {
    over_panel<rows()>(panel.width, panel.features, [&](auto vectors, int64_t at) HWY_ATTR {
      tile<float, rows(), vectors()>(p, row, panel, at, taps);
    });
  });
}

/// Calls `then` with a number of the type.
template <typename Then>
HWY_INLINE void with_type(WeightType type, const Then& then) {
  if (type == WeightType::kFloat16) return then(hwy::float16_t());
  if (type == WeightType::kBFloat16) return then(hwy::bfloat16_t());
  return then(int8_t());
}

/// Inputs of a panel that become float32 at a time.
constexpr int64_t kExpanded = 256;

/// Makes float32 of inputs [first, first + count) of `taps` taps of a panel from the one `tap` on.
void expand(const Panel& panel, WeightType type, int64_t tap, int64_t taps, int64_t first,
            int64_t count, float* to) {
  const D d;
  with_type(type, [&](auto typed) HWY_ATTR {
    for (int64_t t = tap; t < tap + taps; ++t) {
      int64_t begin = 0;  // of the segment
      for (const Segment* s = panel.segments; begin < first + count; begin += s++->in) {
        const int64_t from = std::max(first, begin), end = std::min(first + count, begin + s->in);
        if (end <= from) continue;
        const auto* weights = static_cast<const decltype(typed)*>(s->weights) + t * s->tap_stride +
                              (from - begin) * panel.width;
        for (int64_t i = 0; i < (end - from) * panel.width; i += kLanes, to += kLanes) {
          hn::Store(load_weights(d, weights + i), d, to);
        }
      }
    }
  });
}

/// Rows [first, end) times a panel of a narrower type, which becomes float32 in parts: whole rows
/// of the window's taps, or inputs of one tap.
void expand_and_multiply(const Product& p, const Panel& panel, int64_t first, int64_t end) {
  HWY_ALIGN float expanded[kExpanded * kPanel];
  Segment segment{expanded, 0, 0};
  Panel own = panel;
  own.segments = &segment;
  own.segment_count = 1;
  Product part = p;
  const Taps all = all_taps(p);
  const int64_t width = all.end_column, taps = all.end_row * width;
  const int64_t parts = (p.in + kExpanded - 1) / kExpanded, share = (p.in + parts - 1) / parts;
  const int64_t rows = kExpanded / (p.in * width), step = rows == 0 ? 1 : rows * width;
  for (int64_t tap = 0; tap < taps; tap += step) {
    const int64_t count = std::min(step, taps - tap), row = tap / width, column = tap % width;
    for (int64_t in = 0; in < p.in; in += share) {
      segment.in = std::min(share, p.in - in);
      segment.tap_stride = segment.in * panel.width;
      expand(panel, p.weight->type(), tap, count, in, segment.in, expanded);
      const bool is_last = tap + count == taps && in + segment.in == p.in;
      part.x = p.x + in;
      part.epilogue = is_last ? p.epilogue : Epilogue();
      const bool adds = tap > 0 || in > 0;
      multiply_rows(part, own, first, end,
                    rows == 0 ? Taps{row, row + 1, column, column + 1, adds}
                              : Taps{row, row + count / width, 0, width, adds});
    }
  }
}

void run_packed(const Product& p, const ParallelFor& parallel_for) {
  // The rows of a block and a panel fit into a cache of the second level.
  constexpr int64_t kBlockBytes = int64_t{1} << 18;
  const Taps all = all_taps(p);
  const int64_t taps = all.end_row * all.end_column;
  const int64_t row_bytes = static_cast<int64_t>(sizeof(float)) * p.in * taps;
  const Tasks tasks(p.rows, p.weight->size(), p.in * taps,
                    kBlockBytes / std::max<int64_t>(1, row_bytes));
  const WeightType type = p.weight->type();
  parallel_for(tasks.blocks * tasks.panels, tasks.grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t task = begin; task < end; ++task) {
      const Panel& panel = (*p.weight)[task % tasks.panels];
      const int64_t first = task / tasks.panels * tasks.block_rows;
      const int64_t end_row = std::min(first + tasks.block_rows, p.rows);
      if (type == WeightType::kFloat32) {
        multiply_rows(p, panel, first, end_row, all);
      } else if (kIsSmall || end_row - first > 1 || p.positions != nullptr) {
        expand_and_multiply(p, panel, first, end_row);
      } else if constexpr (!kIsSmall) {
        with_type(type, [&](auto typed) HWY_ATTR {
          over_panel<1>(panel.width, panel.features, [&](auto vectors, int64_t at) HWY_ATTR {
            tile<decltype(typed), 1, vectors()>(p, first, panel, at, all);
          });
        });
      }
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
