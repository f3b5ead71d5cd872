#include "kernels/window.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "kernels/level.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/window.cpp"
#include "kernels/per_level.h"
// After per_level.h.
#include "kernels/columns_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

/// The taps of a window that lie inside, in both dimensions.
class TapsInside {
 public:
  HWY_INLINE TapsInside(const Window& at, const Inside& rows, const Inside& columns)
      : rows_(rows),
        columns_(columns),
        place_(rows.place * at.in_size[1] + columns.place),
        below_(at.dilation[0] * at.in_size[1]),
        right_(at.dilation[1]),
        line_(at.kernel[1]) {}

  /// Calls `each(place, tap)` for each, `place` being the position in the input.
  template <typename Each>
  HWY_INLINE void operator()(const Each& each) const {
    int64_t line = place_, first = rows_.first * line_ + columns_.first;
    for (int64_t i = 0; i < rows_.count; ++i, line += below_, first += line_) {
      int64_t place = line;
      for (int64_t j = 0; j < columns_.count; ++j, place += right_) each(place, first + j);
    }
  }

 private:
  Inside rows_, columns_;
  int64_t place_, below_, right_, line_;
};

/// Calls `each(taps, place)` for all output positions.
template <typename Each>
HWY_INLINE void over_windows(const Window& at, const Each& each) {
  int64_t place = 0;
  for (int64_t h = 0; h < at.out_size[0]; ++h) {
    const Inside rows(at, 0, h);
    for (int64_t w = 0; w < at.out_size[1]; ++w) {
      each(TapsInside(at, rows, Inside(at, 1, w)), place++);
    }
  }
}

/// y += factor * weight, of `count` features.
HWY_INLINE void add_scaled(float factor, const float* weight, int64_t count, float* y) {
  over_columns(count, [&](auto d, int64_t at) HWY_ATTR {
    hn::StoreU(hn::MulAdd(hn::Set(d, factor), hn::LoadU(d, weight + at), hn::LoadU(d, y + at)), d,
               y + at);
  });
}

}  // namespace

void pool_window(const PoolWindow& pass) {
  const auto pool = [&](auto is_max) HWY_ATTR {
    over_windows(pass.window, [&](const TapsInside& taps, int64_t place) HWY_ATTR {
      over_columns(pass.channels, [&](auto d, int64_t at) HWY_ATTR {
        auto y = hn::Set(d, is_max() ? -std::numeric_limits<float>::infinity() : 0.0F);
        const float* const channels = pass.x + at;
        taps([&](int64_t from, int64_t /*tap*/) HWY_ATTR {
          const auto x = hn::LoadU(d, channels + from * pass.channels);
          if constexpr (is_max()) {
            y = larger(d, x, y);
          } else {
            y = hn::Add(y, x);
          }
        });
        if constexpr (!is_max()) y = hn::Div(y, hn::Set(d, static_cast<float>(pass.window.taps())));
        hn::StoreU(y, d, pass.y + place * pass.channels + at);
      });
    });
  };
  if (pass.is_max) return pool(std::true_type());
  pool(std::false_type());
}

void grouped_convolution(const GroupedConvolution& pass) {
  const int64_t in = pass.in / pass.groups, out = pass.out / pass.groups;
  over_windows(pass.window, [&](const TapsInside& taps, int64_t place) HWY_ATTR {
    float* y = pass.y + place * pass.out;
    const int64_t step = pass.packed_in * pass.packed_out;
    if (in == 1 && out == 1) {
      over_columns(pass.out, [&](auto d, int64_t at) HWY_ATTR {
        auto sum = hn::Zero(d);
        taps([&](int64_t from, int64_t tap) HWY_ATTR {
          sum = hn::MulAdd(hn::LoadU(d, pass.x + from * pass.in + at),
                           hn::LoadU(d, pass.weight + tap * step + at), sum);
        });
        hn::StoreU(sum, d, y + at);
      });
      return;
    }
    std::fill_n(y, pass.out, 0.0F);
    taps([&](int64_t from, int64_t tap) HWY_ATTR {
      const float* x = pass.x + from * pass.in;
      const float* weight = pass.weight + tap * step;
      for (int64_t g = 0; g < pass.groups; ++g) {
        for (int64_t i = 0; i < in; ++i) {
          add_scaled(x[g * in + i], weight + i * pass.packed_out + g * out, out, y + g * out);
        }
      }
    });
  });
}

void transposed_convolution(const TransposedConvolution& pass) {
  const auto& size = pass.window.in_size;  // of the result
  std::fill_n(pass.y, size[0] * size[1] * pass.out, 0.0F);
  over_windows(pass.window, [&](const TapsInside& taps, int64_t place) HWY_ATTR {
    const float* x = pass.x + place * pass.in;
    taps([&](int64_t to, int64_t tap) HWY_ATTR {
      const float* weight = pass.weight + tap * pass.packed_in * pass.packed_out;
      for (int64_t i = 0; i < pass.in; ++i) {
        add_scaled(x[i], weight + i * pass.packed_out, pass.out, pass.y + to * pass.out);
      }
    });
  });
}

void mean_of_positions(const MeanOfPositions& pass) {
  // Sums of so many positions are kept in float32, and added up in float64.
  constexpr int64_t kInFloat = 64;
  over_columns(pass.channels, [&](auto d, int64_t at) HWY_ATTR {
    constexpr size_t kLanes = hn::MaxLanes(decltype(d)());
    double total[kLanes] = {};
    HWY_ALIGN float part[kLanes];
    for (int64_t begin = 0; begin < pass.positions; begin += kInFloat) {
      auto sum = hn::Zero(d);
      const int64_t end = std::min(pass.positions, begin + kInFloat);
      for (int64_t p = begin; p < end; ++p) {
        sum = hn::Add(sum, hn::LoadU(d, pass.x + p * pass.channels + at));
      }
      hn::Store(sum, d, part);
      for (size_t i = 0; i < kLanes; ++i) total[i] += part[i];
    }
    for (size_t i = 0; i < kLanes; ++i) {
      pass.y[at + static_cast<int64_t>(i)] =
          static_cast<float>(total[i] / static_cast<double>(pass.positions));
    }
  });
}

void enlarge(const Enlarge& pass) {
  struct Source {
    int64_t low, high;
    float share;  // of the high one
  };
  const auto source = [&](int64_t at, size_t d) {
    const float place = (static_cast<float>(at) + 0.5F) / static_cast<float>(pass.factor) - 0.5F;
    const float bounded = std::max(place, 0.0F);
    // Large numbers are rounded, so that it might lie behind the last.
    const int64_t last = pass.in_size[d] - 1;
    const int64_t low = std::min(static_cast<int64_t>(bounded), last);
    return Source{low, std::min(low + 1, last), bounded - static_cast<float>(low)};
  };
  const int64_t width = pass.in_size[1] * pass.factor;
  const int64_t positions = pass.in_size[0] * pass.factor * width;
  for (int64_t place = 0; place < positions; ++place) {
    const int64_t h = place / width, w = place % width;
    float* y = pass.y + place * pass.channels;
    if (!pass.is_bilinear) {
      const int64_t from = h / pass.factor * pass.in_size[1] + w / pass.factor;
      std::copy_n(pass.x + from * pass.channels, pass.channels, y);
      continue;
    }
    const Source row = source(h, 0), column = source(w, 1);
    std::fill_n(y, pass.channels, 0.0F);
    const auto add = [&](int64_t i, int64_t j, float share) HWY_ATTR {
      add_scaled(share, pass.x + (i * pass.in_size[1] + j) * pass.channels, pass.channels, y);
    };
    add(row.low, column.low, (1.0F - row.share) * (1.0F - column.share));
    add(row.low, column.high, (1.0F - row.share) * column.share);
    add(row.high, column.low, row.share * (1.0F - column.share));
    add(row.high, column.high, row.share * column.share);
  }
}

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

void run(const PoolWindow& pass) { NSN_AT_LEVEL(pool_window)(pass); }
void run(const GroupedConvolution& pass) { NSN_AT_LEVEL(grouped_convolution)(pass); }
void run(const TransposedConvolution& pass) { NSN_AT_LEVEL(transposed_convolution)(pass); }
void run(const MeanOfPositions& pass) { NSN_AT_LEVEL(mean_of_positions)(pass); }
void run(const Enlarge& pass) { NSN_AT_LEVEL(enlarge)(pass); }

}  // namespace nsn::kernels
#endif
