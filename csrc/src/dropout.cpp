#include "dropout.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

// The same source compiled for several instruction sets; the loader picks the machine's. An
// instrumented build takes one: sanitizers cannot run the loader's choice.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define NSN_VECTORIZED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define NSN_VECTORIZED
#endif
// The loops have to be compiled as part of the function that is cloned.
#define NSN_INLINE inline __attribute__((always_inline))

namespace nsn::detail {

uint64_t mix(uint64_t seed, uint64_t place) {
  // The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) over one Weyl step a place.
  uint64_t z = seed + (place + 1) * 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

namespace {

constexpr int64_t kWordBits = 64;
constexpr int64_t kWordsPerTask = 512;

/// The dropout of one lane, made ready for the inner loop.
struct Keep {
  explicit Keep(const functional::Dropout& dropout)
      : key(dropout.key),
        none_dropped(dropout.probability <= 0.0),
        all_dropped(dropout.probability >= 1.0),
        drop_below(static_cast<uint32_t>(
            std::min(std::nearbyint(dropout.probability * 4294967296.0), 4294967295.0))) {}

  uint64_t key;
  bool none_dropped, all_dropped;
  uint32_t drop_below;  // of the 2^32 values that random_bits takes
};

/// A counter-based generator: 32 random bits for an element's index (its low half; the high half
/// is mixed into the key). The 32-bit permutation "triple32" (Wellons, "Prospecting for Hash
/// Functions", 2018), with one half of the key before it and the other in its middle.
NSN_INLINE uint32_t random_bits(uint32_t index, uint32_t key_low, uint32_t key_high) {
  uint32_t x = index + key_low;
  x ^= x >> 17;
  x *= 0xED5AD4BBU;
  x ^= x >> 11;
  x *= 0xAC4C1B51U;
  x ^= key_high;
  x ^= x >> 15;
  x *= 0x31848BABU;
  x ^= x >> 14;
  return x;
}

/// keep[j] = 1 where the dropout keeps element 64 * word + j, else 0.
NSN_INLINE void keep_elements(const Keep& dropout, int64_t word, uint8_t* keep) {
  if (dropout.none_dropped || dropout.all_dropped) {
    std::fill_n(keep, kWordBits, static_cast<uint8_t>(dropout.none_dropped));
    return;
  }
  const uint64_t first = static_cast<uint64_t>(word) * kWordBits;
  const uint64_t key = mix(dropout.key, first >> 32);
  const auto key_low = static_cast<uint32_t>(key);
  const auto key_high = static_cast<uint32_t>(key >> 32);
  const auto index = static_cast<uint32_t>(first);
  for (uint32_t j = 0; j < kWordBits; ++j) {
    keep[j] = random_bits(index + j, key_low, key_high) >= dropout.drop_below ? 1 : 0;
  }
}

NSN_INLINE uint64_t pack(const uint8_t* keep, int64_t count) {
  uint64_t bits = 0;
  for (int64_t j = 0; j < count; ++j) bits |= static_cast<uint64_t>(keep[j]) << j;
  return bits;
}

template <typename scalar_t>
struct Forward {
  const scalar_t* x;
  scalar_t* out;
  uint64_t* mask;
  int64_t numel;
  Keep dropout;
  bool relu;
  at::opmath_type<scalar_t> scale;

  NSN_INLINE void run(int64_t first_word, int64_t end_word) const {
    for (int64_t word = first_word; word < end_word; ++word) {
      alignas(64) uint8_t keep[kWordBits];
      keep_elements(dropout, word, keep);
      const int64_t first = word * kWordBits;
      const int64_t count = std::min(kWordBits, numel - first);
      const scalar_t* from = x + first;
      scalar_t* to = out + first;
      for (int64_t j = 0; j < count; ++j) {
        // "not <= 0" and not "> 0": NaN passes, as through torch's ReLU.
        const bool positive = !(from[j] <= scalar_t(0));
        keep[j] = keep[j] & static_cast<uint8_t>(!relu || positive);
      }
      for (int64_t j = 0; j < count; ++j) {
        to[j] = keep[j] ? static_cast<scalar_t>(from[j] * scale) : scalar_t(0);
      }
      mask[word] = pack(keep, count);
    }
  }
};

template <typename scalar_t>
struct Apply {
  const scalar_t* x;
  scalar_t* out;
  const uint64_t* mask;
  int64_t numel;
  at::opmath_type<scalar_t> scale;

  NSN_INLINE void run(int64_t first_word, int64_t end_word) const {
    for (int64_t word = first_word; word < end_word; ++word) {
      const uint64_t bits = mask[word];
      const int64_t first = word * kWordBits;
      const int64_t count = std::min(kWordBits, numel - first);
      for (int64_t j = 0; j < count; ++j) {
        out[first + j] =
            ((bits >> j) & 1U) ? static_cast<scalar_t>(x[first + j] * scale) : scalar_t(0);
      }
    }
  }
};

// target_clones takes plain functions only, so one a dtype that deserves it.
NSN_VECTORIZED void run(const Forward<float>& kernel, int64_t begin, int64_t end) {
  kernel.run(begin, end);
}
NSN_VECTORIZED void run(const Forward<double>& kernel, int64_t begin, int64_t end) {
  kernel.run(begin, end);
}
NSN_VECTORIZED void run(const Apply<float>& kernel, int64_t begin, int64_t end) {
  kernel.run(begin, end);
}
NSN_VECTORIZED void run(const Apply<double>& kernel, int64_t begin, int64_t end) {
  kernel.run(begin, end);
}
template <typename Kernel>
void run(const Kernel& kernel, int64_t begin, int64_t end) {
  kernel.run(begin, end);
}

template <typename Kernel>
void run_in_parallel(const Kernel& kernel) {
  at::parallel_for(0, mask_words(kernel.numel), kWordsPerTask,
                   [&](int64_t begin, int64_t end) { run(kernel, begin, end); });
}

}  // namespace

int64_t mask_words(int64_t numel) { return (numel + kWordBits - 1) / kWordBits; }

void masked_forward(const at::Tensor& x, bool relu, const functional::Dropout& dropout,
                    const at::Tensor& out, const at::Tensor& mask) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "nsn::relu_dropout", [&] {
        run_in_parallel(Forward<scalar_t>{
            x.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(),
            reinterpret_cast<uint64_t*>(mask.mutable_data_ptr<int64_t>()), x.numel(), Keep(dropout),
            relu, static_cast<at::opmath_type<scalar_t>>(dropout_scale(dropout))});
      });
}

void masked_apply(const at::Tensor& x, const at::Tensor& mask, double scale,
                  const at::Tensor& out) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "nsn::relu_dropout_backward", [&] {
        run_in_parallel(
            Apply<scalar_t>{x.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(),
                            reinterpret_cast<const uint64_t*>(mask.const_data_ptr<int64_t>()),
                            x.numel(), static_cast<at::opmath_type<scalar_t>>(scale)});
      });
}

double dropout_scale(const functional::Dropout& dropout) {
  // At p = 1 nothing is kept, and 1 / 0 would turn 0 * inf into NaN.
  return dropout.probability >= 1.0 ? 0.0 : 1.0 / (1.0 - dropout.probability);
}

at::Tensor unpack_mask(const at::Tensor& mask, at::IntArrayRef shape) {
  const int64_t numel = c10::multiply_integers(shape);
  at::Tensor result = at::empty(shape, at::TensorOptions().dtype(at::kBool));
  const int64_t* words = mask.const_data_ptr<int64_t>();
  bool* out = result.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < numel; ++i) {
    out[i] = ((static_cast<uint64_t>(words[i / kWordBits]) >> (i % kWordBits)) & 1U) != 0;
  }
  return result;
}

}  // namespace nsn::detail

namespace nsn::functional {

at::Tensor dropout_mask(at::IntArrayRef shape, const Dropout& dropout) {
  const int64_t numel = c10::multiply_integers(shape);
  const at::Tensor mask =
      at::empty({detail::mask_words(numel)}, at::TensorOptions().dtype(at::kLong));
  const at::Tensor ones = at::ones({numel});
  detail::masked_forward(ones, /*relu=*/false, dropout, at::empty_like(ones), mask);
  return detail::unpack_mask(mask, shape);
}

}  // namespace nsn::functional
