#include "kernels/product.h"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "kernels/level.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/product.cpp"
#include "kernels/per_level.h"
// After per_level.h, and once for each level.
#include "kernels/tiles_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

/// Where rows begin, one after the other: those of a matrix, or the windows of a convolution's
/// output positions. Numbers and not pointers: behind the last row nothing has to lie.
class Rows {
 public:
  Rows(const Product& p, int64_t first) : x_(p.x) {
    if (p.image == nullptr) {
      step_ = p.x_stride;
      at_ = first * step_;
      return;
    }
    const Window& window = *p.image->window;
    const auto [height, width] = window.out_size;
    step_ = window.stride[1] * p.in;
    next_line_ = window.stride[0] * window.in_size[1] * p.in;
    next_sample_ = window.inputs() * p.in;
    width_ = width;
    height_ = height;
    const int64_t line = first / width, sample = line / height;
    in_line_ = width - first % width;
    lines_ = height - line % height;
    sample_ = sample * next_sample_;
    line_ = sample_ + line % height * next_line_;
    at_ = line_ + first % width * step_;
  }

  HWY_INLINE const float* next() {
    const float* const row = x_ + at_;
    at_ += step_;
    if (--in_line_ == 0) begin_line();
    return row;
  }

 private:
  void begin_line() {
    in_line_ = width_;
    line_ += next_line_;
    if (--lines_ == 0) {
      lines_ = height_;
      line_ = sample_ += next_sample_;
    }
    at_ = line_;
  }

  const float* x_;
  int64_t at_ = 0, step_ = 0;
  /// Of a convolution; a matrix is one line without an end.
  int64_t line_ = 0, next_line_ = 0, sample_ = 0, next_sample_ = 0, width_ = 0, height_ = 0;
  int64_t in_line_ = std::numeric_limits<int64_t>::max(), lines_ = 0;
};

/// Adds the products of rows with a panel's features from `begin` on.
template <typename Weight, size_t rows, size_t vectors>
HWY_INLINE void add_products(const Product& p, const Panel& panel, int64_t begin,
                             const float* const (&from)[rows], V (&sum)[rows][vectors]) {
  const Segment* const end = panel.segments + panel.segment_count;
  int64_t first = 0;
  for (const Segment* segment = panel.segments; segment != end; ++segment) {
    const Weight* const weights = static_cast<const Weight*>(segment->weights) + begin;
    // Narrow weights are multiplied as they are in matrices alone.
    if (!std::is_same_v<Weight, float> || p.image == nullptr) {
      multiply(
          sum, from, [&](int64_t i) HWY_ATTR { return first + i; }, weights, panel.width,
          segment->rows);
    } else {
      const int64_t* const places = p.image->places + first;
      multiply(
          sum, from, [&](int64_t i) HWY_ATTR { return places[i]; }, weights, panel.width,
          segment->rows);
    }
    first += segment->rows;
  }
}

/// A product's epilogue: all of it at all times, which is less than to ask for each part.
HWY_INLINE V finish(D d, V z, V factor, V shift, V least) {
  return at_least(d, least, hn::MulAdd(z, factor, shift));
}

/// `rows` rows times `vectors` vectors of a panel's features, from the one `begin` on.
template <typename Weight, size_t rows, size_t vectors>
HWY_INLINE void tile(const Product& p, int64_t first, const float* const (&from)[rows],
                     const Panel& panel, int64_t begin, bool adds) {
  const D d;
  float* const y = p.y + first * p.y_stride + panel.feature + begin;
  const int64_t features = panel.features - begin;
  V sum[rows][vectors];
  HWY_UNROLL(8)
  for (size_t r = 0; r < rows; ++r) {
    HWY_UNROLL(8)
    for (size_t v = 0; v < vectors; ++v) sum[r][v] = hn::Zero(d);
  }
  if (adds) {
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
  add_products<Weight>(p, panel, begin, from, sum);
  const auto& [scale, bias, relu] = p.epilogue;
  const V least = hn::Set(d, relu ? 0.0F : -std::numeric_limits<float>::infinity());
  HWY_UNROLL(8)
  for (size_t v = 0; v < vectors; ++v) {
    const auto of_tile = static_cast<int64_t>(v * kLanes);
    const int64_t left = features - of_tile, at = panel.feature + begin + of_tile;
    if (left <= 0) break;
    const V factor = scale == nullptr ? hn::Set(d, 1.0F) : load_part(d, scale + at, left);
    const V shift = bias == nullptr ? hn::Zero(d) : load_part(d, bias + at, left);
    float* to = y + of_tile;
    if (left >= static_cast<int64_t>(kLanes)) {  // asked here, and not for each row
      HWY_UNROLL(8)
      for (size_t r = 0; r < rows; ++r, to += p.y_stride) {
        hn::StoreU(finish(d, sum[r][v], factor, shift, least), d, to);
      }
    } else {
      HWY_UNROLL(8)
      for (size_t r = 0; r < rows; ++r, to += p.y_stride) {
        store_part(d, finish(d, sum[r][v], factor, shift, least), to, left);
      }
    }
  }
}

/// Rows [first, end) times a panel of float32.
HWY_NOINLINE void multiply_rows(const Product& p, const Panel& panel, int64_t first, int64_t end,
                                bool adds) {
  Rows next(p, first);
  over_rows(first, end, [&](auto rows, int64_t row) HWY_ATTR {
    const float* from[rows()];
    for (size_t r = 0; r < rows(); ++r) from[r] = next.next();
    over_panel<rows()>(panel.width, panel.features, [&](auto vectors, int64_t at) HWY_ATTR {
      tile<float, rows(), vectors()>(p, row, from, panel, at, adds);
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

/// Rows of a panel that become float32 at a time.
constexpr int64_t kExpanded = 256;

/// Makes float32 of a panel's rows [first, end).
void expand(const Panel& panel, WeightType type, int64_t first, int64_t end, float* to) {
  const D d;
  with_type(type, [&](auto typed) HWY_ATTR {
    int64_t begin = 0;  // of the segment
    for (const Segment* s = panel.segments; begin < end; begin += s++->rows) {
      const int64_t from = std::max(first, begin), until = std::min(end, begin + s->rows);
      if (until <= from) continue;
      const auto* weights =
          static_cast<const decltype(typed)*>(s->weights) + (from - begin) * panel.width;
      for (int64_t i = 0; i < (until - from) * panel.width; i += kLanes, to += kLanes) {
        hn::Store(load_weights(d, weights + i), d, to);
      }
    }
  });
}

/// Rows [first, end) times a panel of a narrower type, which becomes float32 in parts of `inner`
/// rows.
void expand_and_multiply(const Product& p, const Panel& panel, int64_t inner, int64_t first,
                         int64_t end) {
  HWY_ALIGN float expanded[kExpanded * kPanel];
  Segment segment{expanded, 0};
  Panel own = panel;
  own.segments = &segment;
  own.segment_count = 1;
  Product part = p;
  Image image;
  if (p.image != nullptr) {
    image = *p.image;
    part.image = &image;
  }
  const int64_t parts = (inner + kExpanded - 1) / kExpanded, share = (inner + parts - 1) / parts;
  for (int64_t begin = 0; begin < inner; begin += share) {
    const int64_t until = std::min(begin + share, inner);
    segment.rows = until - begin;
    expand(panel, p.weight->type(), begin, until, expanded);
    if (p.image == nullptr) {
      part.x = p.x + begin;
    } else {
      image.places = p.image->places + begin;
    }
    part.epilogue = until == inner ? p.epilogue : Epilogue();
    multiply_rows(part, own, first, end, /*adds=*/begin > 0);
  }
}

/// Rows [first, end) times a panel.
void multiply_panel(const Product& p, const Panel& panel, int64_t inner, int64_t first,
                    int64_t end) {
  const WeightType type = p.weight->type();
  if (type == WeightType::kFloat32) {
    multiply_rows(p, panel, first, end, /*adds=*/false);
  } else if (kIsSmall || end - first > 1 || p.image != nullptr) {
    expand_and_multiply(p, panel, inner, first, end);
  } else if constexpr (!kIsSmall) {
    with_type(type, [&](auto typed) HWY_ATTR {
      const float* const from[] = {p.x + first * p.x_stride};
      over_panel<1>(panel.width, panel.features, [&](auto vectors, int64_t at) HWY_ATTR {
        tile<decltype(typed), 1, vectors()>(p, first, from, panel, at, /*adds=*/false);
      });
    });
  }
}

void run_packed(const Product& p, const ParallelFor& parallel_for) {
  // The rows of a block and a panel fit into a cache of the second level.
  constexpr int64_t kBlockBytes = int64_t{1} << 18;
  const int64_t inner = p.image == nullptr ? p.in : p.in * p.image->window->taps();
  const int64_t row_bytes = static_cast<int64_t>(sizeof(float)) * inner;
  const Blocks blocks(p.rows, kBlockBytes / std::max<int64_t>(1, row_bytes));
  const int64_t panels = p.weight->size();
  // Threads share the tiles: those of a panel lie behind each other, then the panels of a block.
  // Narrow panels are made float32 once for all rows of a block, which are one tile here.
  const bool is_narrow = p.weight->type() != WeightType::kFloat32;
  const auto step = is_narrow ? blocks.rows : static_cast<int64_t>(kRows);
  const int64_t tiles = (std::min(blocks.rows, p.rows) + step - 1) / step;
  const int64_t grain = grain_for(std::min(step, p.rows) * inner * kPanel);
  parallel_for(blocks.count * panels * tiles, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t next; begin < end; begin = next) {
      const int64_t tile = begin % tiles, panel = begin / tiles % panels;
      const int64_t block = begin / tiles / panels * blocks.rows;
      next = std::min(end, begin - tile + tiles);
      const int64_t first = block + tile * step;
      const int64_t last = std::min(block + (tile + next - begin) * step, p.rows);
      // The last block may have fewer tiles than the others.
      if (first < last) multiply_panel(p, (*p.weight)[panel], inner, first, last);
    }
  });
}

}  // namespace

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

void fill_places(const Window& window, int64_t in, int64_t* places) {
  const int64_t taps = window.taps(), right = window.dilation[1] * in;
  const int64_t below = window.dilation[0] * window.in_size[1] * in;
  for (int64_t t = 0; t < taps; ++t) {
    places[t] = t / window.kernel[1] * below + t % window.kernel[1] * right;
  }
  for (int64_t i = 1; i < in; ++i) {
    for (int64_t t = 0; t < taps; ++t) places[i * taps + t] = places[t] + i;
  }
}

void run(const Product& product, const ParallelFor& parallel_for) {
  NSN_AT_LEVEL(run_packed)(product, parallel_for);
}

}  // namespace nsn::kernels
#endif
