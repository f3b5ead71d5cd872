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

LogSum softmax_row(const float* logits, float* probabilities, int64_t classes, float factor) {
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

  const auto shift = hn::Set(d, largest), scale = hn::Set(d, factor);
  auto sums = hn::Zero(d);
  for (int64_t c = 0; c < whole; c += kLanes) {
    const auto e = exp_of_negative(d, hn::Mul(scale, hn::Sub(hn::LoadU(d, logits + c), shift)));
    hn::StoreU(e, d, probabilities + c);
    sums = hn::Add(sums, e);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, sums));
  if (whole < classes) {
    hn::Store(exp_of_negative(d, hn::Mul(scale, hn::Sub(hn::Load(d, rest), shift))), d, rest);
    for (int64_t c = whole; c < classes; ++c) {
      probabilities[c] = rest[c - whole];
      sum += probabilities[c];
    }
  }
  const auto share = static_cast<float>(1.0 / sum);
  const auto shares = hn::Set(d, share);
  for (int64_t c = 0; c < whole; c += kLanes) {
    hn::StoreU(hn::Mul(hn::LoadU(d, probabilities + c), shares), d, probabilities + c);
  }
  for (int64_t c = whole; c < classes; ++c) probabilities[c] *= share;
  return {static_cast<double>(largest), std::log(sum)};
}

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

LogSum row_softmax(const float* logits, float* probabilities, int64_t classes, float factor) {
  return NSN_AT_LEVEL(softmax_row)(logits, probabilities, classes, factor);
}

}  // namespace nsn::kernels
#endif
