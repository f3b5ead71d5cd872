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
/// output positions, pool by pool. Numbers and not pointers: behind the last row nothing has to
/// lie.
class Rows {
 public:
  /// From row `first` on, the first one of a pool.
  Rows(const Product& p, int64_t first) : x_(p.x) {
    if (p.image == nullptr) {
      step_ = p.x_stride;
      at_ = first * step_;
      return;
    }
    const auto& [window, places, pool] = *p.image;
    const int64_t right = window->stride[1] * p.in;
    const int64_t below = window->stride[0] * window->in_size[1] * p.in;
    of_pool_ = p.image->of_pool();
    for (int64_t i = 0, n = 0; i < pool[0]; ++i) {
      for (int64_t j = 0; j < pool[1]; ++j) in_pool_[n++] = i * below + j * right;
    }
    width_ = window->out_size[1] / pool[1];
    height_ = window->out_size[0] / pool[0];
    step_ = pool[1] * right;
    next_line_ = pool[0] * below - width_ * step_;
    next_sample_ =
        (window->inputs() - height_ * pool[0] * window->stride[0] * window->in_size[1]) * p.in;
    const int64_t pools = first / of_pool_, line = pools / width_, sample = line / height_;
    in_line_ = width_ - pools % width_;
    lines_ = height_ - line % height_;
    at_ = sample * window->inputs() * p.in + line % height_ * pool[0] * below +
          pools % width_ * step_;
  }

  HWY_INLINE const float* next() {
    const float* const row = x_ + at_ + in_pool_[next_in_pool_];
    if (++next_in_pool_ < of_pool_) return row;
    next_in_pool_ = 0;
    at_ += step_;
    if (--in_line_ > 0) return row;
    in_line_ = width_;
    at_ += next_line_;
    if (--lines_ > 0) return row;
    lines_ = height_;
    at_ += next_sample_;
    return row;
  }

 private:
  const float* x_;
  /// Of the pool that is next, and from one pool to the next.
  int64_t at_ = 0, step_ = 0;
  /// A matrix is one line without an end.
  int64_t in_line_ = std::numeric_limits<int64_t>::max(), lines_ = 0, width_ = 0, height_ = 0;
  /// How far it is from behind the last pool of a line, or a sample, to the first of the next.
  int64_t next_line_ = 0, next_sample_ = 0;
  int64_t of_pool_ = 1, next_in_pool_ = 0;
  int64_t in_pool_[kPooledRows] = {};
};

/// Adds the products of rows with features of panels that lie behind each other, from the feature
/// `begin` of each on.
template <typename Weight, size_t panels, size_t rows, size_t vectors>
HWY_INLINE void add_products(const Product& p, const Panel* panel, int64_t begin,
                             const float* const (&from)[rows], V (&sum)[rows][vectors]) {
  int64_t first = 0;
  for (size_t s = 0; s < panel->segment_count; ++s) {
    const Weight* weights[panels];
    for (size_t i = 0; i < panels; ++i) {
      weights[i] = static_cast<const Weight*>(panel[i].segments[s].weights) + begin;
    }
    const int64_t inputs = panel->segments[s].rows;
    // Narrow weights are multiplied as they are in matrices alone.
    if (!std::is_same_v<Weight, float> || p.image == nullptr) {
      multiply(
          sum, from, [&](int64_t i) HWY_ATTR { return first + i; }, weights, panel->width, inputs);
    } else {
      const int64_t* const places = p.image->places + first;
      multiply(
          sum, from, [&](int64_t i) HWY_ATTR { return places[i]; }, weights, panel->width, inputs);
    }
    first += inputs;
  }
}

/// A product's epilogue: all of it at all times, which is less than to ask for each part.
HWY_INLINE V finish(D d, V z, V factor, V shift, V least) {
  return at_least(d, least, hn::MulAdd(z, factor, shift));
}

/// Where a panel's features of rows that lie behind each other go.
struct Results {
  float* y;
  int64_t stride;

  Results behind(int64_t rows, int64_t features = 0) const {
    return {y + rows * stride + features, stride};
  }
};

/// `rows` rows times `vectors` vectors of features: of one panel from the feature `begin` on, or of
/// several whole ones behind each other, of which the last may have fewer features.
template <typename Weight, size_t rows, size_t vectors, size_t panels = 1>
HWY_INLINE void tile(const Product& p, const float* const (&from)[rows], const Panel* panel,
                     int64_t begin, bool adds, const Results& to) {
  const D d;
  const Panel& last = panel[panels - 1];
  float* const y = to.y + begin;
  const int64_t features = last.feature + last.features - panel->feature - begin;
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
            load_part(d, y + static_cast<int64_t>(r) * to.stride + of_tile, features - of_tile);
      }
    }
  }
  add_products<Weight, panels>(p, panel, begin, from, sum);
  const auto& [scale, bias, relu] = p.epilogue;
  const V least = hn::Set(d, relu ? 0.0F : -std::numeric_limits<float>::infinity());
  HWY_UNROLL(8)
  for (size_t v = 0; v < vectors; ++v) {
    const auto of_tile = static_cast<int64_t>(v * kLanes);
    const int64_t left = features - of_tile, at = panel->feature + begin + of_tile;
    if (left <= 0) break;
    const V factor = scale == nullptr ? hn::Set(d, 1.0F) : load_part(d, scale + at, left);
    const V shift = bias == nullptr ? hn::Zero(d) : load_part(d, bias + at, left);
    float* row = y + of_tile;
    if (left >= static_cast<int64_t>(kLanes)) {  // asked here, and not for each row
      HWY_UNROLL(8)
      for (size_t r = 0; r < rows; ++r, row += to.stride) {
        hn::StoreU(finish(d, sum[r][v], factor, shift, least), d, row);
      }
    } else {
      HWY_UNROLL(8)
      for (size_t r = 0; r < rows; ++r, row += to.stride) {
        store_part(d, finish(d, sum[r][v], factor, shift, least), row, left);
      }
    }
  }
}

/// Rows [first, end) times a panel of float32, in tiles of `step` rows.
HWY_NOINLINE void multiply_rows(const Product& p, const Panel& panel, int64_t first, int64_t end,
                                bool adds, const Results& to, int64_t step = kRows) {
  Rows next(p, first);
  over_rows(
      first, end,
      [&](auto rows, int64_t row) HWY_ATTR {
        const float* from[rows()];
        for (size_t r = 0; r < rows(); ++r) from[r] = next.next();
        over_panel<rows()>(panel.width, panel.features, [&](auto vectors, int64_t at) HWY_ATTR {
          tile<float, rows(), vectors()>(p, from, &panel, at, adds, to.behind(row - first));
        });
      },
      step);
}

/// Whether tiles may be as wide as a panel and the one behind it, and nearly all of that is used.
bool are_pair(const Panel* panel) {
  return panel[0].features == kPanel && panel[1].features > kHalfPanel;
}

/// Rows [first, end) times such a pair of float32.
template <size_t rows>
HWY_NOINLINE void multiply_pair(const Product& p, const Panel* panel, int64_t first, int64_t end,
                                Results to) {
  if constexpr (rows > 0) {
    constexpr size_t kVectors = 2 * kPanel / kLanes;
    Rows next(p, first);
    for (; first + static_cast<int64_t>(rows) <= end; first += rows) {
      const float* from[rows];
      for (const float*& row : from) row = next.next();
      tile<float, rows, kVectors, 2>(p, from, panel, 0, /*adds=*/false, to);
      to = to.behind(rows);
    }
  }
  if (first == end) return;
  multiply_rows(p, panel[0], first, end, /*adds=*/false, to);
  multiply_rows(p, panel[1], first, end, /*adds=*/false, to.behind(0, kPanel));
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
                         int64_t end, const Results& to) {
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
    multiply_rows(part, own, first, end, /*adds=*/begin > 0, to);
  }
}

/// Rows [first, end) times a panel, those of float32 in tiles of `step` rows.
void multiply_panel(const Product& p, const Panel& panel, int64_t inner, int64_t first, int64_t end,
                    const Results& to, int64_t step = kRows) {
  const WeightType type = p.weight->type();
  if (type == WeightType::kFloat32) {
    multiply_rows(p, panel, first, end, /*adds=*/false, to, step);
  } else if (kIsSmall || p.rows > 1 || p.image != nullptr) {
    expand_and_multiply(p, panel, inner, first, end, to);
  } else if constexpr (!kIsSmall) {
    with_type(type, [&](auto typed) HWY_ATTR {
      const float* const from[] = {p.x + first * p.x_stride};
      over_panel<1>(panel.width, panel.features, [&](auto vectors, int64_t at) HWY_ATTR {
        tile<decltype(typed), 1, vectors()>(p, from, &panel, at, /*adds=*/false, to);
      });
    });
  }
}

/// Rows [first, end) of a convolution, whole pools, times a panel: the largest of each pool.
void multiply_and_pool(const Product& p, const Panel& panel, int64_t inner, int64_t first,
                       int64_t end, Results to) {
  // Whole tiles, as threads begin anywhere among them.
  constexpr int64_t kMost = kPooledRows % kRows == 0 ? 4 * kPooledRows : kPooledRows;
  HWY_ALIGN float results[kMost * kPanel];
  const int64_t of_pool = p.image->of_pool();
  for (; first < end; first += kMost) {
    const int64_t count = std::min(kMost, end - first);
    multiply_panel(p, panel, inner, first, first + count, {results, kPanel});
    for (int64_t row = 0; row < count; row += of_pool, to = to.behind(1)) {
      over_columns(panel.features, [&](auto d, int64_t at) HWY_ATTR {
        const float* from = results + row * kPanel + at;
        auto most = hn::LoadU(d, from);
        for (int64_t i = 1; i < of_pool; ++i) {
          most = larger(d, most, hn::LoadU(d, from += kPanel));
        }
        hn::StoreU(most, d, to.y + at);
      });
    }
  }
}

void run_packed(const Product& p, const ParallelFor& parallel_for) {
  // The rows of a block and two panels fit into a cache of the second level.
  constexpr int64_t kBlockBytes = int64_t{1} << 18;
  const int64_t inner = p.image == nullptr ? p.in : p.in * p.image->window->taps();
  const int64_t row_bytes = static_cast<int64_t>(sizeof(float)) * inner;
  const int64_t panels = p.weight->size();
  const int64_t of_pool = p.image == nullptr ? 1 : p.image->of_pool();
  // Of few rows larger tiles would leave too many over.
  const bool pairs = kPairRows > 0 && p.weight->type() == WeightType::kFloat32 && of_pool == 1 &&
                     panels > 1 && are_pair(&(*p.weight)[0]) &&
                     p.rows >= static_cast<int64_t>(4 * kPairRows);
  const int64_t step = of_pool > 1 ? kPooledRows : static_cast<int64_t>(pairs ? kPairRows : kRows);
  const Blocks blocks(p.rows, kBlockBytes / std::max<int64_t>(1, row_bytes), step);
  const int64_t group = pairs ? 2 : 1, groups = (panels + group - 1) / group;
  // Threads share the tiles: those of a panel lie behind each other, then the panels of a block.
  // They begin at whole tiles, so that it changes no bit where they do; each makes those panels
  // float32 that are narrow and that it multiplies.
  const int64_t tiles = (std::min(blocks.rows, p.rows) + step - 1) / step;
  const int64_t grain = grain_for(std::min(step, p.rows) * inner * kPanel * group);
  parallel_for(blocks.count * groups * tiles, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t next; begin < end; begin = next) {
      const int64_t tile = begin % tiles, of_block = begin / tiles;
      const int64_t block = of_block / groups * blocks.rows, number = of_block % groups * group;
      next = std::min(end, begin - tile + tiles);
      const int64_t first = block + tile * step;
      const int64_t last = std::min(block + (tile + next - begin) * step, p.rows);
      // The last block may have fewer tiles than the others.
      if (first >= last) continue;
      const Panel* const panel = &(*p.weight)[number];
      const int64_t count = std::min(group, panels - number);
      const Results to{p.y + first / of_pool * p.y_stride, p.y_stride};
      if (count == 2 && are_pair(panel)) {
        multiply_pair<kPairRows>(p, panel, first, last, to.behind(0, panel->feature));
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        const Results of_panel = to.behind(0, panel[i].feature);
        if (of_pool > 1) {
          multiply_and_pool(p, panel[i], inner, first, last, of_panel);
        } else {
          multiply_panel(p, panel[i], inner, first, last, of_panel, step);
        }
      }
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
