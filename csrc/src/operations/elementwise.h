#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "nsn/operations/dropout.h"

// The element-wise passes behind functional::linear, functional::relu_dropout and packs, on the
// CPU: kernels/elementwise.h on tensors, spread over threads. A mask is an int64 tensor of words:
// bit j of word i says whether element 64 i + j is kept. Words, not elements, are spread over
// threads, so that no two threads write one word.

namespace nsn::detail {

/// The number of mask words for `numel` elements.
int64_t mask_words(int64_t numel);

/// What a kept element is multiplied with.
double dropout_scale(const functional::Dropout& dropout);

/// Writes out = kept ? (x + bias) * dropout_scale : 0, and where `mask` is defined what was kept.
/// An element is kept if the dropout keeps it and, with `relu`, x + bias is not <= 0. x and out:
/// one floating dtype, contiguous, of one size; they may be the same tensor. bias: of the last
/// extent of x, or undefined.
void masked_forward(const at::Tensor& x, const at::Tensor& bias, bool relu,
                    const functional::Dropout& dropout, const at::Tensor& out,
                    const at::Tensor& mask);

/// Writes out = bit of the mask ? x * scale : 0.
void masked_apply(const at::Tensor& x, const at::Tensor& mask, double scale, const at::Tensor& out);

/// Writes out = z Phi(z) for z = x + bias, Phi being the normal distribution's function, and where
/// `derivative` is defined d out / dz. x, out, derivative: float32, contiguous, of one size;
/// derivative may be x. bias: of the last extent of x, or undefined.
void gelu_forward(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& out,
                  const at::Tensor& derivative);

/// The mask as a bool tensor of `shape`.
at::Tensor unpack_mask(const at::Tensor& mask, at::IntArrayRef shape);

}  // namespace nsn::detail
