#include "kernels/panel_tiles.h"

#include <type_traits>

#include "kernels/level.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/panel_tiles.cpp"
#include "kernels/per_level.h"
// After per_level.h, and once for each level.
#include "kernels/tiles_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

/// The products of rows with features of `panels` panels that lie behind each other, from the
/// feature `begin` of each on.
template <typename Weight, size_t panels, size_t rows, size_t vectors>
HWY_INLINE void multiply_all(const Panel* panel, const Taps& taps, int64_t begin,
                             const float* const (&from)[rows], V (&sum)[rows][vectors]) {
  const auto runs = [&](const auto& run) HWY_ATTR {
    const auto weights_of = [&](size_t segment, int64_t row,
                                const Weight*(&weights)[panels]) HWY_ATTR {
      for (size_t i = 0; i < panels; ++i) {
        const auto* all = static_cast<const Weight*>(panel[i].segments[segment].weights);
        weights[i] = all + begin + row * panel->width;
      }
    };
    const size_t segments = panel->segment_count;
    int64_t before = 0;  // inputs of other segments
    const Weight* weights[panels];
    // Narrow weights are multiplied as they are in matrices alone.
    if (!std::is_same_v<Weight, float> || taps.places == nullptr) {
      for (size_t s = 0; s < segments; ++s) {
        const int64_t inputs = panel->segments[s].inputs, width = hide(panel)->width;
        weights_of(s, 0, weights);
        run(hide(&from[0]), before, weights, inputs,
            [width](int64_t i) HWY_ATTR { return Place{i, i * width}; });
        before += inputs;
      }
      return;
    }
    for (size_t s = 0; s < segments; ++s) {
      const int64_t inputs = panel->segments[s].inputs;
      for (int64_t done = 0, count = 0; done < inputs; done += count) {
        count = std::min(taps.inputs, inputs - done);
        weights_of(s, done * taps.rows, weights);
        const Place* const places = taps.places;
        run(hide(&from[0]), before + done, weights, count * taps.of_input,
            [places](int64_t i) HWY_ATTR { return places[i]; });
      }
      before += inputs;
    }
  };
  multiply<Weight, panels>(runs, sum);
}

/// Copies `count` features, from the one `begin` on, of rows that lie anywhere.
HWY_NOINLINE void copy_features(size_t rows, int64_t begin, int64_t count, float* const* from,
                                float* const* to) {
  for (size_t r = 0; r < rows; ++r) {
    over_columns(count, [&](auto d, int64_t at) HWY_ATTR {
      hn::StoreU(hn::LoadU(d, from[r] + begin + at), d, to[r] + begin + at);
    });
  }
}

/// `rows` rows times `vectors` vectors of features: of one panel from the feature `begin` on, or of
/// several whole ones behind each other, of which the last may have fewer features. The results of
/// the first feature go to `to`. Each shape is a function by itself: compilers take minutes for one
/// that holds all, under sanitizers.
template <typename Weight, size_t rows, size_t vectors, size_t panels = 1>
HWY_NOINLINE void tile(const Way& way, const float* const (&from)[rows], const Panel* panel,
                       int64_t begin, float* const (&to)[rows]) {
  constexpr auto kWidth = static_cast<int64_t>(vectors * kLanes);
  const D d;
  const Panel& last = panel[panels - 1];
  // Whole vectors are read and written: where there are not so many features, elsewhere.
  HWY_ALIGN float elsewhere[rows * panels * kPanel];
  float* others[rows];
  // What is done behind the loop, which needs the registers.
  struct Rest {
    const Way* way;
    int64_t begin, features;
    float *const *y, *const *to;
  } rest{&way, begin, last.feature + last.features - panel->feature - begin, to, to};
  if (rest.features < kWidth) {
    for (size_t r = 0; r < rows; ++r) others[r] = elsewhere + r * panels * kPanel;
    rest.y = others;
    if (way.adds) copy_features(rows, begin, rest.features, to, others);
  }
  V sum[rows][vectors];
  multiply_all<Weight, panels>(panel, way.taps, begin, from, sum);
  const auto& [ends, first, features, all_y, results] = *hide(&rest);
  // Read before anything is written, behind which they would be read again.
  float* y[rows];
  HWY_UNROLL(8)
  for (size_t r = 0; r < rows; ++r) y[r] = all_y[r] + first;
  const float *const scales = ends->scale + first, *const biases = ends->bias + first;
  const V least = hn::Set(d, ends->least);
  if (ends->adds) {
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      HWY_UNROLL(8)
      for (size_t v = 0; v < vectors; ++v) {
        sum[r][v] = hn::Add(sum[r][v], hn::LoadU(d, y[r] + v * kLanes));
      }
    }
  }
  HWY_UNROLL(8)
  for (size_t v = 0; v < vectors; ++v) {
    const V scale = hn::LoadU(d, scales + v * kLanes);
    const V bias = hn::LoadU(d, biases + v * kLanes);
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      hn::StoreU(at_least(d, least, hn::MulAdd(sum[r][v], scale, bias)), d, y[r] + v * kLanes);
    }
  }
  if (features < kWidth) copy_features(rows, first, features, all_y, results);
}

/// `some` rows, whole tiles, times a panel of float32.
HWY_NOINLINE void multiply_rows(const Way& way, const Panel& panel, Rows& next,
                                const RowTiles& tiles, const Interval& some) {
  over_rows(tiles, some.begin, some.end, [&](auto rows, int64_t /*row*/) HWY_ATTR {
    const float* from[rows()];
    float* to[rows()];
    next.next(from, to);
    over_panel<rows()>(panel.width, panel.features, [&](auto vectors, int64_t at) HWY_ATTR {
      tile<float, rows(), vectors()>(way, from, &panel, at, to);
    });
  });
}

/// `count` rows times a pair of panels.
template <size_t rows>
HWY_NOINLINE void multiply_pair(const Way& way, const Panel* panel, Rows& next, int64_t count) {
  if constexpr (rows > 0) {
    constexpr size_t kVectors = 2 * kPanel / kLanes;
    for (; count >= static_cast<int64_t>(rows); count -= rows) {
      const float* from[rows];
      float* to[rows];
      next.next(from, to);
      tile<float, rows, kVectors, 2>(way, from, panel, 0, to);
    }
  }
  if (count == 0) return;
  Rows behind = next.behind(kPanel);
  const RowTiles left{count, kRows, 0};
  multiply_rows(way, panel[0], next, left, {0, count});
  multiply_rows(Way(way, kPanel), panel[1], behind, left, {0, count});
}

void multiply_panels(const Way& way, const Panel* panel, int64_t panels, Rows& rows,
                     const RowTiles& tiles, const Interval& some) {
  if (panels == 2) return multiply_pair<kPairRows>(way, panel, rows, some.size());
  multiply_rows(way, *panel, rows, tiles, some);
}

/// Calls `then` with a number of the type.
template <typename Then>
HWY_INLINE void with_type(WeightType type, const Then& then) {
  if (type == WeightType::kFloat16) return then(hwy::float16_t());
  if (type == WeightType::kBFloat16) return then(hwy::bfloat16_t());
  return then(int8_t());
}

[[maybe_unused]] void multiply_narrow(const Way& way, const Panel& panel, WeightType type,
                                      const float* x, float* y) {
  with_type(type, [&](auto typed) HWY_ATTR {
    const float* const from[] = {x};
    float* const to[] = {y};
    over_panel<1>(panel.width, panel.features, [&](auto vectors, int64_t at) HWY_ATTR {
      tile<decltype(typed), 1, vectors()>(way, from, &panel, at, to);
    });
  });
}

void expand(WeightType type, const void* from, int64_t count, float* to) {
  with_type(type, [&](auto typed) HWY_ATTR {
    const D d;
    const auto* weights = static_cast<const decltype(typed)*>(from);
    for (int64_t i = 0; i < count; i += kLanes) {
      hn::StoreU(load_weights(d, weights + i), d, to + i);
    }
  });
}

/// The largest of each feature from `from` on, of so many vectors, over a pool.
template <size_t vectors, typename D>
HWY_INLINE void largest_of(D d, const std::array<int64_t, 2>& pool, const float* from, int64_t line,
                           float* y) {
  const auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  hn::Vec<D> most[vectors];
  for (size_t v = 0; v < vectors; ++v) most[v] = hn::LoadU(d, from + v * lanes);
  for (int64_t j = 0; j < pool[0]; ++j, from += line) {
    const float* position = from;
    for (int64_t k = 0; k < pool[1]; ++k, position += kPanel) {
      for (size_t v = 0; v < vectors; ++v) {
        most[v] = larger(d, most[v], hn::LoadU(d, position + v * lanes));
      }
    }
  }
  for (size_t v = 0; v < vectors; ++v) hn::StoreU(most[v], d, y + v * lanes);
}

void keep_largest(const std::array<int64_t, 2>& pool, const float* from, int64_t line,
                  int64_t count, int64_t features, float* y, int64_t y_step) {
  constexpr size_t kVectors = kIsSmall ? 1 : 2;
  constexpr auto kTogether = static_cast<int64_t>(kVectors * kLanes);
  for (int64_t i = 0; i < count; ++i, from += pool[1] * kPanel, y += y_step) {
    int64_t done = 0;
    for (; kVectors > 1 && done + kTogether <= features; done += kTogether) {
      largest_of<kVectors>(D(), pool, from + done, line, y + done);
    }
    over_columns(features - done, [&](auto d, int64_t at) HWY_ATTR {
      largest_of<1>(d, pool, from + done + at, line, y + done + at);
    });
  }
}

}  // namespace

PanelTiles tiles_of_level() {
  PanelTiles result{static_cast<int64_t>(kRows),
                    static_cast<int64_t>(kLeastRows),
                    static_cast<int64_t>(kPairRows),
                    multiply_panels,
                    nullptr,
                    expand,
                    keep_largest};
  if constexpr (!kIsSmall) result.multiply_narrow = multiply_narrow;
  return result;
}

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

const PanelTiles& panel_tiles() {
  static const PanelTiles tiles = NSN_AT_LEVEL(tiles_of_level)();
  return tiles;
}

}  // namespace nsn::kernels
#endif
