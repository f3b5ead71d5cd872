#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "nsn/description/description.h"

// Which elements of a parameter sub-networks use, as a file has them: one behind the other.

namespace nsn::detail {

/// What sub-networks (their places) use of one parameter: leading boxes of a view of it.
struct Uses {
  Shape view;
  std::vector<std::pair<size_t, Shape>> boxes;
};
Uses uses_of(const Description& description, size_t parameter);

/// One behind the last element of a box.
int64_t end_of(const Shape& box, const Shape& view);

/// The boxes of the sub-networks that are set, but for those inside others.
std::vector<Shape> largest(const Uses& uses, const std::vector<bool>& subnetworks);

/// Calls `run(begin, end)`, in ascending order, for the elements that are in boxes of `wanted` and
/// in none of `present`. Takes time in proportion to the rows up to the end of the wanted ones.
void for_each_run(Shape view, std::vector<Shape> wanted, std::vector<Shape> present,
                  const std::function<void(int64_t, int64_t)>& run);

/// Whether `box` is inside one of `boxes`.
bool is_inside(const Shape& box, const std::vector<Shape>& boxes);

}  // namespace nsn::detail
