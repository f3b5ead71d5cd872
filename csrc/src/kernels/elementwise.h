#pragma once

#include <cstdint>

// Passes over the elements of activations.

namespace nsn::kernels {

/// Elements that one word of a mask has bits for.
constexpr int64_t kWordBits = 64;

/// out = kept ? scale * (x + bias) : 0, and one bit an element of what was kept. An element is kept
/// if the dropout keeps it and, with `relu`, x + bias is not <= 0. T: float or double.
template <typename T>
struct MaskedForward {
  /// `numel` elements; `out` may be `x`.
  const T* x;
  T* out;
  int64_t numel;
  /// The place of x[0] among the elements that bias and dropout count, a multiple of kWordBits.
  int64_t first = 0;
  /// Null, or the vector that rows of so many columns have in common, and behind it kWordBits more
  /// of its elements, from the start again: a word may begin anywhere in a row.
  const T* bias = nullptr;
  int64_t columns = 1;
  bool relu = false;
  /// Dropout: whether there is one, its key, and below which of 2^32 values it drops.
  bool drops = false;
  uint64_t key = 0;
  uint32_t drop_below = 0;
  T scale = 1;
  /// Null, or one word for each kWordBits elements.
  uint64_t* mask = nullptr;
};

/// out = bit of the mask ? scale * x : 0.
template <typename T>
struct MaskedApply {
  const T* x;
  T* out;
  int64_t numel;
  const uint64_t* mask;
  T scale;
};

/// out = z Phi(z) for z = x + bias, Phi being the normal distribution's function, and its
/// derivative Phi(z) + z phi(z).
struct Gelu {
  /// `numel` elements in rows of `columns`, the last row perhaps shorter.
  const float* x;
  int64_t numel, columns;
  /// Of `columns`, or null.
  const float* bias;
  /// May be `x`, as may `derivative`, which may be null.
  float* out;
  float* derivative;
};

/// Computes the words, or the rows, [begin, end).
void run(const MaskedForward<float>& pass, int64_t begin, int64_t end);
void run(const MaskedForward<double>& pass, int64_t begin, int64_t end);
void run(const MaskedApply<float>& pass, int64_t begin, int64_t end);
void run(const MaskedApply<double>& pass, int64_t begin, int64_t end);
void run(const Gelu& pass, int64_t begin, int64_t end);

}  // namespace nsn::kernels
