#include "elementwise.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zero.h>
#include <ATen/ops/zeros.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>
#include <vector>

#include "mix.h"
#include "vectorized.h"

namespace nsn::detail {

namespace {

constexpr int64_t kWordBits = 64;
constexpr int64_t kHalfBits = 32;
constexpr int64_t kWordsPerTask = 256;

/// The dropout of one lane, made ready for the inner loop. p = 1 has no place here.
struct Keep {
  explicit Keep(const functional::Dropout& dropout)
      : key(dropout.key),
        drop_below(static_cast<uint32_t>(
            std::min(std::nearbyint(dropout.probability * 4294967296.0), 4294967295.0))) {}

  uint64_t key;
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

// The loops below stay in lanes of 32 bits and gather a mask by OR, half a word at a time: that is
// what compilers vectorize well. Narrowing to bytes in between makes them eight times as slow.

template <typename scalar_t, bool has_bias, bool relu, bool drops>
struct Forward {
  using opmath_t = at::opmath_type<scalar_t>;

  const scalar_t* x;
  const scalar_t* bias;  // `columns` elements and then kWordBits more, from the start again
  int64_t columns;
  scalar_t* out;
  uint64_t* mask;  // or null
  int64_t numel;
  Keep dropout;
  opmath_t scale;

  NSN_INLINE void run(int64_t first_word, int64_t end_word) const {
    for (int64_t word = first_word; word < end_word; ++word) {
      const int64_t first = word * kWordBits;
      const int64_t count = std::min(kWordBits, numel - first);
      const uint64_t key = mix(dropout.key, static_cast<uint64_t>(first) >> 32);
      const scalar_t* row = has_bias ? bias + first % columns : nullptr;
      uint64_t bits = 0;
      // A constant number of rounds is what makes the inner loop fast.
      if (count == kWordBits) {
        bits = run_half(first, row, key, kHalfBits);
        bits |= run_half(first + kHalfBits, row + kHalfBits, key, kHalfBits) << kHalfBits;
      } else {
        bits = run_half(first, row, key, std::min(count, kHalfBits));
        bits |= run_half(first + kHalfBits, row + kHalfBits, key, count - kHalfBits) << kHalfBits;
      }
      if (mask != nullptr) mask[word] = bits;
    }
  }

  NSN_INLINE uint64_t run_half(int64_t first, const scalar_t* row, uint64_t key,
                               int64_t count) const {
    const auto key_low = static_cast<uint32_t>(key);
    const auto key_high = static_cast<uint32_t>(key >> 32);
    const auto index = static_cast<uint32_t>(first);
    const scalar_t* from = x + first;
    scalar_t* to = out + first;
    // Copies, so that the compiler need not fear that a store to `to` changes them.
    const uint32_t drop_below = dropout.drop_below;
    const opmath_t factor = scale;
    const auto rounds = static_cast<uint32_t>(std::max<int64_t>(count, 0));
    uint32_t bits = 0;
    NSN_IVDEP
    for (uint32_t j = 0; j < rounds; ++j) {
      scalar_t z = from[j];
      if constexpr (has_bias) z = z + row[j];
      bool keep = true;
      if constexpr (drops) keep = random_bits(index + j, key_low, key_high) >= drop_below;
      // "not <= 0" and not "> 0": NaN passes, as through torch's ReLU.
      if constexpr (relu) keep = keep & !(z <= scalar_t(0));
      bits |= keep ? (1U << j) : 0U;
      to[j] = keep ? static_cast<scalar_t>(z * factor) : scalar_t(0);
    }
    return bits;
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
      const int64_t first = word * kWordBits;
      const int64_t count = std::min(kWordBits, numel - first);
      const auto low = static_cast<uint32_t>(mask[word]);
      const auto high = static_cast<uint32_t>(mask[word] >> kHalfBits);
      if (count == kWordBits) {
        run_half(low, first, kHalfBits);
        run_half(high, first + kHalfBits, kHalfBits);
      } else {
        run_half(low, first, std::min(count, kHalfBits));
        run_half(high, first + kHalfBits, count - kHalfBits);
      }
    }
  }

  NSN_INLINE void run_half(uint32_t bits, int64_t first, int64_t count) const {
    const scalar_t* from = x + first;
    scalar_t* to = out + first;
    const auto factor = scale;
    const auto rounds = static_cast<uint32_t>(std::max<int64_t>(count, 0));
    NSN_IVDEP
    for (uint32_t j = 0; j < rounds; ++j) {
      to[j] = (bits & (1U << j)) != 0 ? static_cast<scalar_t>(from[j] * factor) : scalar_t(0);
    }
  }
};

/// e^x for x <= 0, from -87 down e^-87: 2^n times a polynomial on half a binade (coefficients of
/// Cephes' expf, Moshier). Relative error 2e-7. A comparison of floats would keep compilers from
/// vectorizing the loop around; the bits of negative ones are ordered as unsigned numbers.
NSN_INLINE float exp_of_negative(float x) {
  constexpr float kLog2e = 1.44269504F, kLn2High = 0.693359375F, kLn2Low = -2.12194440e-4F;
  const float bounded =
      std::bit_cast<float>(std::min(std::bit_cast<uint32_t>(x), std::bit_cast<uint32_t>(-87.0F)));
  const auto n = static_cast<int32_t>(bounded * kLog2e - 0.5F);  // the nearest
  const float r = bounded - static_cast<float>(n) * kLn2High - static_cast<float>(n) * kLn2Low;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  return p * std::bit_cast<float>((n + 127) << 23);
}

/// Rows of z Phi(z) and its derivative Phi(z) + z phi(z).
struct Gelu {
  const float* x;
  const float* bias;  // of `columns`
  int64_t columns;
  float* out;
  float* derivative;  // or null

  NSN_INLINE void run(int64_t first_row, int64_t end_row) const {
    for (int64_t row = first_row; row < end_row; ++row) {
      if (derivative != nullptr) {
        run_row<true>(row * columns);
      } else {
        run_row<false>(row * columns);
      }
    }
  }

  template <bool differentiates>
  NSN_INLINE void run_row(int64_t first) const {
    const float* from = x + first;
    float* to = out + first;
    float* slope = derivative + first;
    const float* shift = bias;
    const auto rounds = static_cast<uint32_t>(columns);
    NSN_IVDEP
    for (uint32_t j = 0; j < rounds; ++j) {
      const float z = from[j] + shift[j];
      // erf by formula 7.1.26 of Abramowitz & Stegun, whose exponential the density needs too.
      const float t = 1.0F / (1.0F + 0.3275911F * 0.70710678F * std::fabs(z));
      const float e = exp_of_negative(-0.5F * z * z);
      const float tail =
          0.5F * e * t *
          (0.254829592F +
           t * (-0.284496736F + t * (1.421413741F + t * (-1.453152027F + t * 1.061405429F))));
      const float phi = 0.5F + std::copysign(0.5F - tail, z);
      to[j] = z * phi;
      if constexpr (differentiates) slope[j] = phi + z * e * 0.39894228F;
    }
  }
};

// target_clones takes plain functions only: one for each kernel that deserves it.
#define NSN_RUN(...)                                                               \
  NSN_VECTORIZED void run(const __VA_ARGS__& kernel, int64_t begin, int64_t end) { \
    kernel.run(begin, end);                                                        \
  }
#define NSN_RUN_FORWARD(scalar_t)                \
  NSN_RUN(Forward<scalar_t, false, false, true>) \
  NSN_RUN(Forward<scalar_t, false, true, false>) \
  NSN_RUN(Forward<scalar_t, false, true, true>)  \
  NSN_RUN(Forward<scalar_t, true, false, true>)  \
  NSN_RUN(Forward<scalar_t, true, true, false>)  \
  NSN_RUN(Forward<scalar_t, true, true, true>)   \
  NSN_RUN(Apply<scalar_t>)
NSN_RUN_FORWARD(float)
NSN_RUN_FORWARD(double)
NSN_RUN(Gelu)
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

void masked_forward(const at::Tensor& x, const at::Tensor& bias, bool relu,
                    const functional::Dropout& dropout, const at::Tensor& out,
                    const at::Tensor& mask) {
  if (dropout.probability >= 1.0) {
    out.zero_();
    if (mask.defined()) mask.zero_();
    return;
  }
  const bool has_bias = bias.defined();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "nsn::relu_dropout", [&] {
        // A word may begin anywhere in a row, and reads on where the next one begins.
        std::vector<scalar_t> row;
        const int64_t columns = has_bias ? bias.numel() : 1;
        for (int64_t j = 0; has_bias && j < columns + kWordBits; ++j) {
          row.push_back(bias.const_data_ptr<scalar_t>()[j % columns]);
        }
        const auto run_as = [&](auto with_bias, auto with_relu, auto with_dropout) {
          run_in_parallel(Forward<scalar_t, with_bias(), with_relu(), with_dropout()>{
              x.const_data_ptr<scalar_t>(), row.data(), columns, out.mutable_data_ptr<scalar_t>(),
              mask.defined() ? reinterpret_cast<uint64_t*>(mask.mutable_data_ptr<int64_t>())
                             : nullptr,
              x.numel(), Keep(dropout),
              static_cast<at::opmath_type<scalar_t>>(dropout_scale(dropout))});
        };
        const auto choose = [](bool condition, const auto& next) {
          return condition ? next(std::true_type()) : next(std::false_type());
        };
        choose(has_bias, [&](auto with_bias) {
          choose(relu, [&](auto with_relu) {
            choose(dropout.probability > 0.0,
                   [&](auto with_dropout) { run_as(with_bias, with_relu, with_dropout); });
          });
        });
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

void gelu_forward(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& out,
                  const at::Tensor& derivative) {
  const int64_t columns = x.size(-1);
  if (x.numel() == 0) return;
  const at::Tensor shift = bias.defined() ? bias.contiguous() : at::zeros({columns}, x.options());
  const Gelu kernel{x.const_data_ptr<float>(), shift.const_data_ptr<float>(), columns,
                    out.mutable_data_ptr<float>(),
                    derivative.defined() ? derivative.mutable_data_ptr<float>() : nullptr};
  constexpr int64_t kElementsPerTask = 16384;
  at::parallel_for(0, x.numel() / columns, std::max<int64_t>(1, kElementsPerTask / columns),
                   [&](int64_t begin, int64_t end) { run(kernel, begin, end); });
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
