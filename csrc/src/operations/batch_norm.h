#pragma once

#include <ATen/core/Tensor.h>

namespace nsn::detail {

/// What a batch norm by the batch's own statistics gives.
struct BatchNormed {
  at::Tensor y;
  /// Of the batch, (features); the variance unbiased, as running statistics want it. No gradients.
  at::Tensor mean, variance;
};

/// y = (x - mean) / sqrt(variance + eps) * weight + bias over all dimensions but the second, as
/// at::batch_norm in training, for what `takes_batch_norm`. x: (B, features, *); weight, bias:
/// (features), both or neither undefined. Sums go to float64 after a few rows: torch's, which stay
/// in float32 where features lie beside each other, are wrong by 5e-6 at 25,000 positions, and
/// gradients behind them by a thousand times as much.
BatchNormed batch_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                       double eps);

/// Whether it takes these: on the CPU, float32, features beside each other (channels-last), no
/// transform active.
bool takes_batch_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace nsn::detail
