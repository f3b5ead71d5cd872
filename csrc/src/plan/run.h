#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "kernels/product.h"
#include "plan/plan.h"

namespace nsn::plan {

/// One of the tensors of a plan's table.
struct Tensor {
  /// A product's or convolution's, in panels; else null.
  const kernels::Panels* panels = nullptr;
  /// Elements in the order that the kernel says.
  const float* data = nullptr;
  /// The extents that lie there, of which a kernel may use the leading ones: in and out of taps,
  /// rows and columns of a table.
  int64_t packed_in = 0, packed_out = 0;
};

/// A call of a plan. Nothing of it is kept; running it allocates nothing, takes no lock and throws
/// nothing but what `call` does.
struct Run {
  const std::vector<Tensor>* tensors;
  int64_t samples;
  /// (samples, *input), contiguous: float, or int64 where the plan embeds it.
  const void* input;
  /// (samples, *output).
  float* output;
  /// As many elements as `memory_for` says, on a cache line.
  float* memory;
  /// How many threads `parallel_for` may use at once.
  int64_t threads;
  const kernels::ParallelFor* parallel_for;
  /// Computes a `Call`: x and y hold `samples` samples.
  std::function<void(size_t number, int64_t samples, const float* x, float* y)> call;
};

/// Elements of the memory that a call of at most so many samples computes in. A large batch is run
/// in parts, so that it does not grow with the batch, unless the plan has calls.
int64_t memory_for(const Plan& plan, int64_t samples, int64_t threads);

/// A number of the input that is no row of the table that it is embedded by.
struct NoSuchRow {
  int64_t number, rows;
};

/// Says what was wrong with the input, where something was; the output is then not complete.
std::optional<NoSuchRow> run(const Plan& plan, const Run& run);

}  // namespace nsn::plan
