// Elements beside each other, in loops and in parts of vectors, once for each level: included
// behind per_level.h.
#if defined(NSN_COLUMNS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef NSN_COLUMNS_INL
#undef NSN_COLUMNS_INL
#else
#define NSN_COLUMNS_INL
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

/// Calls `each(d, at)` for all vectors of `columns` floats, of up to 64 bytes, and for the rest
/// with smaller ones, down to one float.
template <typename Each>
HWY_INLINE void over_columns(int64_t columns, const Each& each) {
  const hn::CappedTag<float, 16> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t at = 0;
  for (; at + lanes <= columns; at += lanes) each(d, at);
  if (lanes > 8 && at + 8 <= columns) {
    each(hn::CappedTag<float, 8>(), at);
    at += 8;
  }
  for (; at + 4 <= columns; at += 4) each(hn::CappedTag<float, 4>(), at);
  for (; at < columns; ++at) each(hn::CappedTag<float, 1>(), at);
}

/// x, or `least` where it is smaller. NaN passes: on x86 Max is the second operand where one is
/// NaN, and on ARM the number.
template <typename D>
HWY_INLINE hn::Vec<D> at_least(D /*d*/, hn::Vec<D> least, hn::Vec<D> x) {
  return HWY_ARCH_X86 ? hn::Max(least, x) : hn::IfThenElse(hn::Lt(x, least), least, x);
}

/// The larger of both, NaN where one is.
template <typename D>
HWY_INLINE hn::Vec<D> larger(D /*d*/, hn::Vec<D> x, hn::Vec<D> y) {
  const auto most = HWY_ARCH_X86 ? hn::Max(x, y) : hn::IfThenElse(hn::Gt(x, y), x, y);
  return hn::IfThenElse(hn::IsNaN(x), x, most);
}

/// Whether masked loads and stores leave alone what the mask leaves out.
constexpr bool kHasMasks = HWY_MAX_BYTES >= 32;

/// Where there are no masks, and rarely: no part of each loop.
template <typename T>
HWY_NOINLINE void copy_some(const T* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

/// The first `count` of a vector's elements, zeros behind; no more is read.
template <typename D>
HWY_INLINE hn::Vec<D> load_part(D d, const float* from, int64_t count) {
  if (count >= static_cast<int64_t>(hn::MaxLanes(d))) return hn::LoadU(d, from);
  if constexpr (kHasMasks) return hn::MaskedLoad(hn::FirstN(d, count), d, from);
  HWY_ALIGN float part[hn::MaxLanes(D())] = {};
  copy_some(from, count, part);
  return hn::Load(d, part);
}

template <typename D>
HWY_INLINE void store_part(D d, hn::Vec<D> value, float* to, int64_t count) {
  if (count >= static_cast<int64_t>(hn::MaxLanes(d))) {
    hn::StoreU(value, d, to);
    return;
  }
  if constexpr (kHasMasks) {
    hn::BlendedStore(value, hn::FirstN(d, count), d, to);
    return;
  }
  HWY_ALIGN float part[hn::MaxLanes(D())];
  hn::Store(value, d, part);
  copy_some(part, count, to);
}

}  // namespace
}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
