#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "inference/packed_tensors.h"
#include "nsn/program/program.h"
#include "plan/plan.h"

namespace nsn::detail {

/// A tensor of a plan's table: a slice of a pack's tensors, or one of the two rows of it, the scale
/// and the shift of what is folded.
struct PlanTensor {
  const PackedSlice* slice;
  std::optional<int64_t> row;
};

/// A program as a plan, and what the plan refers to.
struct Planned {
  plan::Plan plan;
  std::vector<PlanTensor> tensors;
  /// The steps of the program that the plan's calls stand for, by their number.
  std::vector<const Step*> calls;
};

/// Whether plans can hold it: numbers are the input alone, and embedded, all else is floating. That
/// it is of float32 is what the tensors say.
bool has_plan(const Program& program);

/// Fuses the steps of a program, and says what it will read of `tensors` in the name of
/// `subnetwork`; they stay where they are, as does `program`.
///
/// What stands behind a product or convolution and reads nothing else is its epilogue: norms,
/// scales and shifts, an activation, the sum with a value that is there already, another
/// activation. A norm's vectors go there as vectors, so that weights stay shared among
/// sub-networks.
Planned make_plan(const Program& program, size_t subnetwork, PackedTensors& tensors);

}  // namespace nsn::detail
