#pragma once

#include <cstdint>

// Norms of one sample in inference, float32; sums are of float64.

namespace nsn::kernels {

/// y = weight * (x - mean) / sqrt(variance + eps) + bias of each row, or without `centred`
/// y = weight * x / sqrt(mean square + eps). weight and bias: (columns) or null.
struct NormalizeRows {
  int64_t rows, columns;
  double eps;
  bool centred;
  const float *x, *weight, *bias;
  float* y;
};
void run(const NormalizeRows& pass);

/// The same over groups of channels and all positions: x (positions, channels); weight and bias:
/// (channels) or null.
struct NormalizeGroups {
  int64_t positions, channels, groups;
  double eps;
  const float *x, *weight, *bias;
  float* y;
};
void run(const NormalizeGroups& pass);

}  // namespace nsn::kernels
