// Loops over elements beside each other, once for each level: included behind per_level.h.
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
/// with vectors of one.
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

}  // namespace
}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
