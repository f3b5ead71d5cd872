#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "description/subnetworks.h"
#include "nsn/description/description.h"

namespace nsn::detail {

/// The cells of a grid that were asked for so far.
struct Cells {
  explicit Cells(BlockLookup blocks) : lookup(std::move(blocks)) {}

  const BlockLookup lookup;
  std::mutex mutex;  // over what follows; what `made` points to does not change
  std::unordered_map<size_t, std::unique_ptr<const Description::Subnetwork>> made;
  /// The different slices of each parameter, whoever uses them.
  std::vector<std::vector<Layout>> slices;
};

}  // namespace nsn::detail
