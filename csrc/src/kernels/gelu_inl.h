// GELU, once for each level: included behind per_level.h.
#if defined(NSN_GELU_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef NSN_GELU_INL
#undef NSN_GELU_INL
#else
#define NSN_GELU_INL
#endif

#include <hwy/highway.h>

#include "kernels/exp_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

/// GELU of z; puts the derivative in `slope`.
template <typename D>
HWY_INLINE hn::Vec<D> gelu(D d, hn::Vec<D> z, hn::Vec<D>& slope) {
  // erf by formula 7.1.26 of Abramowitz & Stegun, whose exponential the density needs too.
  const auto one = hn::Set(d, 1.0F), half = hn::Set(d, 0.5F);
  const auto t = hn::Div(one, hn::MulAdd(hn::Set(d, 0.3275911F * 0.70710678F), hn::Abs(z), one));
  const auto e = exp_of_negative(d, hn::Mul(hn::Mul(hn::Set(d, -0.5F), z), z));
  auto p = hn::MulAdd(t, hn::Set(d, 1.061405429F), hn::Set(d, -1.453152027F));
  p = hn::MulAdd(t, p, hn::Set(d, 1.421413741F));
  p = hn::MulAdd(t, p, hn::Set(d, -0.284496736F));
  p = hn::MulAdd(t, p, hn::Set(d, 0.254829592F));
  const auto tail = hn::Mul(hn::Mul(hn::Mul(half, e), t), p);
  const auto phi = hn::Add(half, hn::CopySign(hn::Sub(half, tail), z));
  slope = hn::MulAdd(hn::Mul(z, e), hn::Set(d, 0.39894228F), phi);
  return hn::Mul(z, phi);
}

}  // namespace
}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
