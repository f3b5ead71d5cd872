#include "kernels/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/level.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/softmax.cpp"
#include "kernels/per_level.h"
// After per_level.h.
#include "kernels/columns_inl.h"
#include "kernels/exp_inl.h"

#ifndef NSN_SOFTMAX_ONCE
#define NSN_SOFTMAX_ONCE
namespace nsn::kernels {
namespace {

/// exp(factor * (x - largest)) summed over a row.
struct RowSum {
  float largest;
  double sum;
};

}  // namespace
}  // namespace nsn::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

/// y = softmax(factor * x) of a row.
RowSum softmax_row(const float* x, float* y, int64_t count, float factor) {
  const hn::CappedTag<float, 16> d;
  constexpr int64_t kLanes = hn::MaxLanes(hn::CappedTag<float, 16>());
  // A row begins with whole vectors, behind which is a part of one.
  const int64_t whole = count / kLanes * kLanes, rest = count - whole;
  const auto is_there = hn::FirstN(d, static_cast<size_t>(rest));

  auto most = hn::Set(d, -std::numeric_limits<float>::infinity());
  if (rest > 0) most = hn::IfThenElse(is_there, load_part(d, x + whole, rest), most);
  for (int64_t c = 0; c < whole; c += kLanes) most = hn::Max(most, hn::LoadU(d, x + c));
  const float largest = hn::GetLane(hn::MaxOfLanes(d, most));

  const auto shift = hn::Set(d, largest), scale = hn::Set(d, factor);
  const auto exponential = [&](auto z) HWY_ATTR {
    return exp_of_negative(d, hn::Mul(scale, hn::Sub(z, shift)));
  };
  auto sums = hn::Zero(d);
  for (int64_t c = 0; c < whole; c += kLanes) {
    const auto e = exponential(hn::LoadU(d, x + c));
    hn::StoreU(e, d, y + c);
    sums = hn::Add(sums, e);
  }
  if (rest > 0) {
    const auto e = exponential(load_part(d, x + whole, rest));
    store_part(d, e, y + whole, rest);
    sums = hn::Add(sums, hn::IfThenElseZero(is_there, e));
  }
  const double sum = hn::GetLane(hn::SumOfLanes(d, sums));
  const auto share = hn::Set(d, static_cast<float>(1.0 / sum));
  for (int64_t c = 0; c < whole; c += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, y + c), share), d, y + c);
  }
  if (rest > 0) store_part(d, hn::Mul(load_part(d, y + whole, rest), share), y + whole, rest);
  return {largest, sum};
}

void softmax_rows(const SoftmaxRows& pass) {
  float* x = pass.x;
  int64_t seen = pass.seen;
  for (int64_t i = 0; i < pass.rows; ++i, x += pass.columns, seen += pass.more) {
    softmax_row(x, x, seen, pass.factor);
    std::fill(x + seen, x + pass.columns, 0.0F);
  }
}

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

LogSum row_softmax(const float* logits, float* probabilities, int64_t classes, float factor) {
  const auto [largest, sum] = NSN_AT_LEVEL(softmax_row)(logits, probabilities, classes, factor);
  return {static_cast<double>(largest), std::log(sum)};
}

void run(const SoftmaxRows& pass) { NSN_AT_LEVEL(softmax_rows)(pass); }

}  // namespace nsn::kernels
#endif
