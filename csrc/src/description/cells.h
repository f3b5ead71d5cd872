#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "description/subnetworks.h"
#include "nsn/description/description.h"
#include "values/borders.h"
#include "values/recent.h"

namespace nsn::detail {

/// How many cells of a grid stay that nobody holds.
constexpr size_t kKeptCells = 128;

/// What cells of a grid are made of, and those that were asked for last.
struct Cells {
  explicit Cells(BlockLookup blocks) : lookup(std::move(blocks)), recent(kKeptCells) {}

  const BlockLookup lookup;
  /// Of each parameter, where sub-networks' slices may be parted; constant once the description is
  /// made, so that whether a cell fits does not depend on which others were made before.
  std::vector<Borders> borders;
  Recent<Description::Subnetwork> recent;
};

}  // namespace nsn::detail
