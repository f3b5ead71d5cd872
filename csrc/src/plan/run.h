#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <vector>

#include "kernels/product.h"
#include "plan/plan.h"

namespace nsn::plan {

/// One of the tensors of a plan's table.
struct Tensor {
  /// Panels as kernels/product.h has them, or elements in the order that the kernel says.
  const float* data = nullptr;
  /// The extents that lie there, of which a kernel may use the leading ones.
  int64_t packed_in = 0, packed_out = 0;
};

/// What a call of a plan computes on. Nothing of it is kept.
struct Run {
  const std::vector<Tensor>* tensors;
  int64_t samples;
  /// (samples, *input), contiguous: float, or int64 where the plan embeds it.
  const void* input;
  /// (samples, *output).
  float* output;
  /// samples * plan.arena elements, on a cache line.
  float* arena;
  const kernels::ParallelFor* parallel_for;
  /// Computes a `Call`: x and y hold `samples` samples. Throws what it throws.
  std::function<void(size_t number, int64_t samples, const float* x, float* y)> call;
};

/// A number of the input is no row of the table that it is embedded by; `what` says which.
struct NoSuchRow : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws NoSuchRow.
void run(const Plan& plan, const Run& run);

}  // namespace nsn::plan
