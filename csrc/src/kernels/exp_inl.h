// The exponential that several kernels need, once for each level: included behind per_level.h.
#if defined(NSN_EXP_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef NSN_EXP_INL
#undef NSN_EXP_INL
#else
#define NSN_EXP_INL
#endif

#include <hwy/highway.h>

#include "kernels/columns_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

/// e^x for x <= 0, below -87 zero, as for minus infinity: 2^n times a polynomial on half a binade
/// (coefficients of Cephes' expf, Moshier). Relative error 2e-7.
template <typename D>
HWY_INLINE hn::Vec<D> exp_of_negative(D d, hn::Vec<D> x) {
  const hn::Rebind<int32_t, D> as_int;
  const auto least = hn::Set(d, -87.0F);
  const auto bounded = at_least(d, least, x);
  const auto n = hn::ConvertTo(
      as_int, hn::MulAdd(bounded, hn::Set(d, 1.44269504F), hn::Set(d, -0.5F)));  // the nearest
  const auto whole = hn::ConvertTo(d, n);
  auto r = hn::NegMulAdd(whole, hn::Set(d, 0.693359375F), bounded);
  r = hn::NegMulAdd(whole, hn::Set(d, -2.12194440e-4F), r);
  auto p = hn::Set(d, 1.9875691500e-4F);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3F));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3F));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1F));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1F));
  p = hn::Add(hn::MulAdd(hn::Mul(p, r), r, r), hn::Set(d, 1.0F));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(n, hn::Set(as_int, 127)));
  return hn::IfThenZeroElse(hn::Lt(x, least), hn::Mul(p, hn::BitCast(d, exponent)));
}

}  // namespace
}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
