#include "kernels/norm.h"

#include <algorithm>
#include <numeric>

#include "kernels/level.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm.cpp"
#include "kernels/per_level.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
constexpr int64_t kLanes = std::min<int64_t>(64, HWY_MAX_BYTES) / sizeof(float);

/// Sums of so many rows are kept in float32, and added up in float64.
constexpr int64_t kRowsInFloat = 64;

/// Adds the sums of one vector of columns over whole rows.
template <bool has_dy>
HWY_INLINE void sum_columns(const NormSums& pass, int64_t begin, int64_t end, int64_t column) {
  const D d;
  HWY_ALIGN float part[2][kLanes];
  for (int64_t row = begin; row < end; row += kRowsInFloat) {
    auto sum = hn::Zero(d), product = hn::Zero(d);
    const int64_t last = std::min(end, row + kRowsInFloat);
    for (int64_t r = row; r < last; ++r) {
      const int64_t at = r * pass.columns + column;
      const auto centred = hn::Sub(hn::LoadU(d, pass.x + at), hn::LoadU(d, pass.shift + column));
      const auto first = has_dy ? hn::LoadU(d, pass.dy + at) : centred;
      sum = hn::Add(sum, first);
      product = hn::MulAdd(first, centred, product);
    }
    hn::Store(sum, d, part[0]);
    hn::Store(product, d, part[1]);
    for (int64_t i = 0; i < kLanes; ++i) {
      pass.sums[column + i] += part[0][i];
      pass.sums[pass.columns + column + i] += part[1][i];
    }
  }
}

template <bool has_dy>
HWY_INLINE void sums_of(const NormSums& pass, int64_t begin, int64_t end) {
  const int64_t whole = std::min(end, pass.numel / pass.columns);
  for (int64_t column = 0; column < pass.columns; column += kLanes) {
    sum_columns<has_dy>(pass, begin, whole, column);
  }
  for (int64_t at = whole * pass.columns; whole < end && at < pass.numel; ++at) {
    const int64_t column = at - whole * pass.columns;
    const double centred = static_cast<double>(pass.x[at]) - pass.shift[column];
    const double first = has_dy ? pass.dy[at] : centred;
    pass.sums[column] += first;
    pass.sums[pass.columns + column] += first * centred;
  }
}

template <bool has_dy>
HWY_INLINE void apply_to(const NormApply& pass, int64_t begin, int64_t end) {
  const auto each = [&](auto d, int64_t at, int64_t column) HWY_ATTR {
    const auto centred = hn::Sub(hn::LoadU(d, pass.x + at), hn::LoadU(d, pass.mean + column));
    auto y =
        hn::MulAdd(hn::LoadU(d, pass.factor + column), centred, hn::LoadU(d, pass.shift + column));
    if constexpr (has_dy) {
      y = hn::MulAdd(hn::LoadU(d, pass.dy_factor + column), hn::LoadU(d, pass.dy + at), y);
    }
    hn::StoreU(y, d, pass.out + at);
  };
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * pass.columns;
    const int64_t columns = std::min(pass.columns, pass.numel - first);
    int64_t column = 0;
    for (; column + kLanes <= columns; column += kLanes) each(D(), first + column, column);
    for (; column < columns; ++column) each(hn::CappedTag<float, 1>(), first + column, column);
  }
}

}  // namespace

void norm_sums(const NormSums& pass, int64_t begin, int64_t end) {
  if (pass.dy != nullptr) {
    sums_of<true>(pass, begin, end);
  } else {
    sums_of<false>(pass, begin, end);
  }
}

void norm_apply(const NormApply& pass, int64_t begin, int64_t end) {
  if (pass.dy != nullptr) {
    apply_to<true>(pass, begin, end);
  } else {
    apply_to<false>(pass, begin, end);
  }
}

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

int64_t norm_columns(int64_t features) { return std::lcm(features, int64_t{16}); }

void run(const NormSums& pass, int64_t begin, int64_t end) {
  NSN_AT_LEVEL(norm_sums)(pass, begin, end);
}

void run(const NormApply& pass, int64_t begin, int64_t end) {
  NSN_AT_LEVEL(norm_apply)(pass, begin, end);
}

}  // namespace nsn::kernels
#endif
