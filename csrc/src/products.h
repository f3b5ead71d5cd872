#pragma once

#include <ATen/core/Tensor.h>

namespace nsn::detail {

/// Writes c = a b, or adds alpha a b to c. a: (m, k), b: (k, n), c: (m, n), any strides. On the CPU
/// matrices of float32 whose shape gains by it go through the batch-reduce product that torch
/// brings along, in row blocks of one size, which on many processors is the faster; all others
/// through at::mm and at::addmm. Not recorded.
void multiply(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b);
void add_product(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, double alpha);

}  // namespace nsn::detail
