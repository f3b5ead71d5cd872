#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/level.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cross_entropy.cpp"
#include "kernels/per_level.h"
// After per_level.h.
#include "kernels/exp_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

double row_loss(const float* logits, float* gradient, int64_t classes, int64_t target,
                double scale) {
  const hn::CappedTag<float, 16> d;
  constexpr int64_t kLanes = hn::MaxLanes(hn::CappedTag<float, 16>());
  // The rest of a row that is no whole vector, behind it what adds nothing.
  HWY_ALIGN float rest[kLanes];
  const int64_t whole = classes / kLanes * kLanes;
  std::fill_n(rest, kLanes, -std::numeric_limits<float>::infinity());
  std::copy(logits + whole, logits + classes, rest);

  auto most = hn::Load(d, rest);
  for (int64_t c = 0; c < whole; c += kLanes) most = hn::Max(most, hn::LoadU(d, logits + c));
  const float largest = hn::GetLane(hn::MaxOfLanes(d, most));

  const auto shift = hn::Set(d, largest);
  auto sums = hn::Zero(d);
  for (int64_t c = 0; c < whole; c += kLanes) {
    const auto e = exp_of_negative(d, hn::Sub(hn::LoadU(d, logits + c), shift));
    hn::StoreU(e, d, gradient + c);
    sums = hn::Add(sums, e);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, sums));
  if (whole < classes) {
    hn::Store(exp_of_negative(d, hn::Sub(hn::Load(d, rest), shift)), d, rest);
    for (int64_t c = whole; c < classes; ++c) {
      gradient[c] = rest[c - whole];
      sum += gradient[c];
    }
  }
  const auto factor = static_cast<float>(scale / sum);
  const auto factors = hn::Set(d, factor);
  for (int64_t c = 0; c < whole; c += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, gradient + c), factors), d, gradient + c);
  }
  for (int64_t c = whole; c < classes; ++c) gradient[c] *= factor;
  gradient[target] -= static_cast<float>(scale);
  return std::log(sum) + (static_cast<double>(largest) - static_cast<double>(logits[target]));
}

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

double row_cross_entropy(const float* logits, float* gradient, int64_t classes, int64_t target,
                         double scale) {
  return NSN_AT_LEVEL(row_loss)(logits, gradient, classes, target, scale);
}

}  // namespace nsn::kernels
#endif
