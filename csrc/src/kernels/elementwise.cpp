#include "kernels/elementwise.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "kernels/level.h"
#include "kernels/mix.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/elementwise.cpp"
#include "kernels/per_level.h"
// After per_level.h.
#include "kernels/columns_inl.h"
#include "kernels/gelu_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

namespace hn = hwy::HWY_NAMESPACE;

/// Vectors of up to 64 bytes.
template <typename T>
using Tag = hn::CappedTag<T, 64 / sizeof(T)>;

template <typename T>
constexpr int64_t kLanes = std::min<int64_t>(64, HWY_MAX_BYTES) / sizeof(T);

// -------------------------------------------------------------------------------------------------
// Masks

/// A vector's mask as bits, and back.
template <typename D>
HWY_INLINE uint64_t bits_of(D d, hn::Mask<D> mask) {
  // As wide as it is written, so that the load does not wait for a store of another width.
  std::conditional_t<(hn::MaxLanes(D()) > 8), uint16_t, uint8_t> bits;
  hn::StoreMaskBits(d, mask, reinterpret_cast<uint8_t*>(&bits));
  return bits & ((uint64_t{1} << hn::MaxLanes(d)) - 1);
}

template <typename D>
HWY_INLINE hn::Mask<D> mask_of(D d, uint64_t bits) {
  uint8_t bytes[sizeof bits];
  std::memcpy(bytes, &bits, sizeof bits);
  return hn::LoadMaskBits(d, bytes);
}

/// A counter-based generator: 32 random bits for an element's index (its low half; the high half
/// is mixed into the key). The 32-bit permutation "triple32" (Wellons, "Prospecting for Hash
/// Functions", 2018), with one half of the key before it and the other in its middle.
template <typename D>
HWY_INLINE hn::Vec<D> random_bits(D d, uint32_t index, uint64_t key) {
  hn::Vec<D> x = hn::Iota(d, index + static_cast<uint32_t>(key));
  x = hn::Xor(x, hn::ShiftRight<17>(x));
  x = hn::Mul(x, hn::Set(d, 0xED5AD4BBU));
  x = hn::Xor(x, hn::ShiftRight<11>(x));
  x = hn::Mul(x, hn::Set(d, 0xAC4C1B51U));
  x = hn::Xor(x, hn::Set(d, static_cast<uint32_t>(key >> 32)));
  x = hn::Xor(x, hn::ShiftRight<15>(x));
  x = hn::Mul(x, hn::Set(d, 0x31848BABU));
  return hn::Xor(x, hn::ShiftRight<14>(x));
}

/// Which of a vector's elements, from `index` on, a dropout keeps.
HWY_INLINE hn::Mask<Tag<float>> kept_by_dropout(Tag<float> d, uint32_t index, uint64_t key,
                                                uint32_t drop_below) {
  const hn::Rebind<uint32_t, Tag<float>> as_words;
  const auto random = random_bits(as_words, index, key);
  return hn::RebindMask(d, hn::Eq(hn::Max(random, hn::Set(as_words, drop_below)), random));
}

HWY_INLINE hn::Mask<Tag<double>> kept_by_dropout(Tag<double> d, uint32_t index, uint64_t key,
                                                 uint32_t drop_below) {
  const hn::Rebind<uint32_t, Tag<double>> as_words;
  const hn::Rebind<uint64_t, Tag<double>> as_wide;
  const auto random = random_bits(as_words, index, key);
  const auto at_least = hn::Max(random, hn::Set(as_words, drop_below));
  return hn::RebindMask(d,
                        hn::Eq(hn::PromoteTo(as_wide, at_least), hn::PromoteTo(as_wide, random)));
}

/// One word's elements; returns its bits.
template <bool has_bias, bool relu, bool drops, typename T>
HWY_INLINE uint64_t forward_word(const MaskedForward<T>& pass, const T* x, const T* bias, T* out,
                                 uint32_t index, uint64_t key) {
  const Tag<T> d;
  const auto scale = hn::Set(d, pass.scale);
  uint64_t bits = 0;
  HWY_UNROLL(4)
  for (int64_t j = 0; j < kWordBits; j += kLanes<T>) {
    auto z = hn::LoadU(d, x + j);
    if constexpr (has_bias) z = hn::Add(z, hn::LoadU(d, bias + j));
    auto keep = hn::Eq(hn::Zero(d), hn::Zero(d));
    if constexpr (drops) {
      keep = kept_by_dropout(d, index + static_cast<uint32_t>(j), key, pass.drop_below);
    }
    // "not <= 0" and not "> 0": NaN passes, as through torch's ReLU.
    if constexpr (relu) keep = hn::AndNot(hn::Le(z, hn::Zero(d)), keep);
    hn::StoreU(hn::IfThenElseZero(keep, hn::Mul(z, scale)), d, out + j);
    bits |= bits_of(d, keep) << j;
  }
  return bits;
}

template <bool has_bias, bool relu, bool drops, typename T>
HWY_INLINE void forward(const MaskedForward<T>& pass, int64_t begin, int64_t end) {
  for (int64_t word = begin; word < end; ++word) {
    const int64_t at = word * kWordBits, place = pass.first + at;
    const T* bias = has_bias ? pass.bias + place % pass.columns : nullptr;
    const uint64_t key = detail::mix(pass.key, static_cast<uint64_t>(place) >> 32);
    const auto index = static_cast<uint32_t>(place);
    const int64_t count = std::min(kWordBits, pass.numel - at);
    uint64_t bits;
    if (count == kWordBits) {
      bits =
          forward_word<has_bias, relu, drops>(pass, pass.x + at, bias, pass.out + at, index, key);
    } else {
      T part[kWordBits] = {};
      std::copy_n(pass.x + at, count, part);
      bits = forward_word<has_bias, relu, drops>(pass, part, bias, part, index, key) &
             ((uint64_t{1} << count) - 1);
      std::copy_n(part, count, pass.out + at);
    }
    if (pass.mask != nullptr) pass.mask[word] = bits;
  }
}

template <typename T>
HWY_INLINE void choose_forward(const MaskedForward<T>& pass, int64_t begin, int64_t end) {
  const int choice = (pass.bias != nullptr ? 4 : 0) + (pass.relu ? 2 : 0) + (pass.drops ? 1 : 0);
  switch (choice) {
    case 0:
      return forward<false, false, false>(pass, begin, end);
    case 1:
      return forward<false, false, true>(pass, begin, end);
    case 2:
      return forward<false, true, false>(pass, begin, end);
    case 3:
      return forward<false, true, true>(pass, begin, end);
    case 4:
      return forward<true, false, false>(pass, begin, end);
    case 5:
      return forward<true, false, true>(pass, begin, end);
    case 6:
      return forward<true, true, false>(pass, begin, end);
    default:
      return forward<true, true, true>(pass, begin, end);
  }
}

template <typename T>
HWY_INLINE void apply_word(const T* x, T* out, uint64_t bits, T factor) {
  const Tag<T> d;
  const auto scale = hn::Set(d, factor);
  HWY_UNROLL(4)
  for (int64_t j = 0; j < kWordBits; j += kLanes<T>) {
    hn::StoreU(hn::IfThenElseZero(mask_of(d, bits >> j), hn::Mul(hn::LoadU(d, x + j), scale)), d,
               out + j);
  }
}

template <typename T>
HWY_INLINE void apply(const MaskedApply<T>& pass, int64_t begin, int64_t end) {
  for (int64_t word = begin; word < end; ++word) {
    const int64_t at = word * kWordBits, count = std::min(kWordBits, pass.numel - at);
    if (count == kWordBits) {
      apply_word(pass.x + at, pass.out + at, pass.mask[word], pass.scale);
    } else {
      T part[kWordBits] = {};
      std::copy_n(pass.x + at, count, part);
      apply_word(part, part, pass.mask[word], pass.scale);
      std::copy_n(part, count, pass.out + at);
    }
  }
}

// -------------------------------------------------------------------------------------------------
// Rows

HWY_INLINE void gelu_rows(const Gelu& pass, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * pass.columns;
    over_columns(std::min(pass.columns, pass.numel - first), [&](auto d, int64_t at) HWY_ATTR {
      hn::Vec<decltype(d)> slope;
      auto z = hn::LoadU(d, pass.x + first + at);
      if (pass.bias != nullptr) z = hn::Add(z, hn::LoadU(d, pass.bias + at));
      const auto y = gelu(d, z, slope);
      hn::StoreU(y, d, pass.out + first + at);
      if (pass.derivative != nullptr) hn::StoreU(slope, d, pass.derivative + first + at);
    });
  }
}

}  // namespace

// Names of their own: overloaded ones have no address.
void forward_float(const MaskedForward<float>& pass, int64_t begin, int64_t end) {
  choose_forward(pass, begin, end);
}
void forward_double(const MaskedForward<double>& pass, int64_t begin, int64_t end) {
  choose_forward(pass, begin, end);
}
void apply_float(const MaskedApply<float>& pass, int64_t begin, int64_t end) {
  apply(pass, begin, end);
}
void apply_double(const MaskedApply<double>& pass, int64_t begin, int64_t end) {
  apply(pass, begin, end);
}
void gelu_float(const Gelu& pass, int64_t begin, int64_t end) { gelu_rows(pass, begin, end); }

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

void run(const MaskedForward<float>& pass, int64_t begin, int64_t end) {
  NSN_AT_LEVEL(forward_float)(pass, begin, end);
}
void run(const MaskedForward<double>& pass, int64_t begin, int64_t end) {
  NSN_AT_LEVEL(forward_double)(pass, begin, end);
}
void run(const MaskedApply<float>& pass, int64_t begin, int64_t end) {
  NSN_AT_LEVEL(apply_float)(pass, begin, end);
}
void run(const MaskedApply<double>& pass, int64_t begin, int64_t end) {
  NSN_AT_LEVEL(apply_double)(pass, begin, end);
}
void run(const Gelu& pass, int64_t begin, int64_t end) {
  NSN_AT_LEVEL(gelu_float)(pass, begin, end);
}

}  // namespace nsn::kernels
#endif
