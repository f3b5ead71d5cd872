#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/product.h"

// Products of matrices as they lie, float32.

namespace nsn::kernels {

/// Inputs that are multiplied at a time.
constexpr int64_t kMostInputs = 1024;

/// Elements that the panel of a product of so many inputs takes.
constexpr int64_t panel_memory(int64_t k) { return std::min(k, kMostInputs) * kPanel; }

/// c = alpha a b, or c += alpha a b. The operands are laid out for it on the way, one of them in
/// panels.
struct MatrixProduct {
  int64_t m, n, k;
  /// (m, k) and (k, n), of any strides.
  const float* a;
  int64_t a_row, a_column;
  const float* b;
  int64_t b_row, b_column;
  /// (m, n), the elements of a row beside each other.
  float* c;
  int64_t c_row;
  float alpha = 1.0F;
  bool adds = false;
  /// What the panel is laid out in, `panel_memory(k)` elements, where one thread computes all;
  /// null: memory that the threads keep.
  float* panel = nullptr;
};
void run(const MatrixProduct& product, const ParallelFor& parallel_for);

}  // namespace nsn::kernels
