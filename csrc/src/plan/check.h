#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace nsn::plan {

/// What a plan's table holds at a place. Of elements a kernel may use the leading parts.
struct TensorShape {
  /// Panels: (out, in, taps), of the slice that is meant, which a kernel uses all of. Elements:
  /// (taps, in, out), (rows, columns) behind a 1, or a vector behind two.
  bool is_panels;
  std::array<int64_t, 3> sizes;
};

/// A plan is none that could be run.
struct BadPlan : std::runtime_error {
  /// Where it is one step's fault, which.
  std::optional<size_t> step;

  explicit BadPlan(const std::string& what, std::optional<size_t> where = std::nullopt)
      : std::runtime_error(what), step(where) {}
};

/// Checks a plan of unknown origin, whose offsets are not set yet: running it then reads and writes
/// nothing but its values and tensors. Throws BadPlan, which says what is wrong in which step.
void check(const Plan& plan, const std::vector<TensorShape>& tensors);

/// Whether all extents are at least 1, and their product is one that can be addressed.
bool is_shape(const Shape& shape);

}  // namespace nsn::plan
