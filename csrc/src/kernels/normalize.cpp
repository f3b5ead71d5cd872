#include "kernels/normalize.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/level.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/normalize.cpp"
#include "kernels/per_level.h"
// After per_level.h.
#include "kernels/columns_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

/// Sums of x - shift and of its square.
struct Sums {
  double sum = 0.0, squares = 0.0;
};

/// Adds some elements: so many of them in float32, one sum a lane, and these in float64.
HWY_INLINE void add(const float* x, int64_t count, float shift, Sums& to) {
  constexpr int64_t kInFloat = 1024;
  using Wide = hn::CappedTag<float, 16>;
  const Wide wide;
  for (int64_t begin = 0; begin < count; begin += kInFloat) {
    auto sum = hn::Zero(wide), squares = hn::Zero(wide);
    over_columns(std::min(kInFloat, count - begin), [&](auto d, int64_t at) HWY_ATTR {
      const auto y = hn::Sub(hn::LoadU(d, x + begin + at), hn::Set(d, shift));
      if constexpr (std::is_same_v<decltype(d), Wide>) {
        sum = hn::Add(sum, y);
        squares = hn::MulAdd(y, y, squares);
      } else if constexpr (hn::MaxLanes(d) == 1) {
        const double one = hn::GetLane(y);
        to.sum += one;
        to.squares += one * one;
      } else {
        to.sum += hn::GetLane(hn::SumOfLanes(d, y));
        to.squares += hn::GetLane(hn::SumOfLanes(d, hn::Mul(y, y)));
      }
    });
    to.sum += hn::GetLane(hn::SumOfLanes(wide, sum));
    to.squares += hn::GetLane(hn::SumOfLanes(wide, squares));
  }
}

/// y = (x - shift - rest) * factor, where shift + rest is the mean: the difference of two numbers
/// of float32 that are near to each other is exact.
struct Scaling {
  float shift = 0.0F, rest = 0.0F, factor = 1.0F;
};

/// `sums_from(shift)` gives the sums over all `count` elements.
template <typename SumsFrom>
HWY_INLINE Scaling scaling_of(const SumsFrom& sums_from, double count, double eps, bool centred) {
  Scaling result;
  if (centred) result.shift = static_cast<float>(sums_from(0.0F).sum / count);
  const Sums sums = sums_from(result.shift);
  const double rest = centred ? sums.sum / count : 0.0;
  result.rest = static_cast<float>(rest);
  const double variance = sums.squares / count - rest * rest;
  // Of what float32 does not hold there is no norm, and not zeros, which would hide it.
  result.factor = centred && !std::isfinite(variance)
                      ? std::numeric_limits<float>::quiet_NaN()
                      : static_cast<float>(1.0 / std::sqrt(variance + eps));
  return result;
}

/// Writes y, times weight and plus bias where there are any.
HWY_INLINE void write(const float* x, int64_t columns, const Scaling& scaling, const float* weight,
                      const float* bias, float* y) {
  over_columns(columns, [&](auto d, int64_t at) HWY_ATTR {
    auto z = hn::Sub(hn::LoadU(d, x + at), hn::Set(d, scaling.shift));
    z = hn::Mul(hn::Sub(z, hn::Set(d, scaling.rest)), hn::Set(d, scaling.factor));
    if (weight != nullptr) z = hn::Mul(z, hn::LoadU(d, weight + at));
    if (bias != nullptr) z = hn::Add(z, hn::LoadU(d, bias + at));
    hn::StoreU(z, d, y + at);
  });
}

}  // namespace

void normalize_rows(const NormalizeRows& pass) {
  for (int64_t row = 0; row < pass.rows; ++row) {
    const float* x = pass.x + row * pass.columns;
    const auto sums_from = [&](float shift) HWY_ATTR {
      Sums sums;
      add(x, pass.columns, shift, sums);
      return sums;
    };
    const Scaling scaling =
        scaling_of(sums_from, static_cast<double>(pass.columns), pass.eps, pass.centred);
    write(x, pass.columns, scaling, pass.weight, pass.bias, pass.y + row * pass.columns);
  }
}

void normalize_groups(const NormalizeGroups& pass) {
  const int64_t size = pass.channels / pass.groups;
  for (int64_t group = 0; group < pass.groups; ++group) {
    const int64_t first = group * size;
    const auto sums_from = [&](float shift) HWY_ATTR {
      Sums sums;
      for (int64_t p = 0; p < pass.positions; ++p) {
        add(pass.x + p * pass.channels + first, size, shift, sums);
      }
      return sums;
    };
    const Scaling scaling = scaling_of(sums_from, static_cast<double>(size * pass.positions),
                                       pass.eps, /*centred=*/true);
    const float* weight = pass.weight == nullptr ? nullptr : pass.weight + first;
    const float* bias = pass.bias == nullptr ? nullptr : pass.bias + first;
    for (int64_t p = 0; p < pass.positions; ++p) {
      const int64_t at = p * pass.channels + first;
      write(pass.x + at, size, scaling, weight, bias, pass.y + at);
    }
  }
}

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

void run(const NormalizeRows& pass) { NSN_AT_LEVEL(normalize_rows)(pass); }
void run(const NormalizeGroups& pass) { NSN_AT_LEVEL(normalize_groups)(pass); }

}  // namespace nsn::kernels
#endif
