#pragma once

#include <cstdint>

// The passes of batch norm over activations whose features lie beside each other, float32.
//
// All take `numel` elements in rows of `columns`, the last row perhaps shorter. A row is one or
// several positions' features (`norm_columns`), and per-feature vectors are repeated to its length.

namespace nsn::kernels {

/// The least multiple of `features` that vectors of all levels divide.
int64_t norm_columns(int64_t features);

/// Two sums for each column over the rows of a task: of x - shift and of its square; or with `dy`
/// of dy and of dy (x - shift).
struct NormSums {
  const float *x, *dy, *shift;
  int64_t numel, columns;
  /// (2, columns), which are added to.
  double* sums;
};

/// out = factor (x - mean) + shift; or with `dy` out = dy_factor dy + factor (x - mean) + shift.
struct NormApply {
  const float *x, *dy, *mean, *factor, *dy_factor, *shift;
  int64_t numel, columns;
  float* out;
};

/// Computes the rows [begin, end).
void run(const NormSums& pass, int64_t begin, int64_t end);
void run(const NormApply& pass, int64_t begin, int64_t end);

}  // namespace nsn::kernels
