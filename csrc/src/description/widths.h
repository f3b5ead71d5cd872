#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "nsn/description/description.h"

// The widths of a sub-network: from what its options say to what it keeps of each block.

namespace nsn::detail {

/// One block of a sub-network.
struct KeptBlock {
  const Block* block;
  BlockUse use;
  /// Dimensions that a width stands for which names none of them, and how much it keeps of each.
  std::vector<std::pair<std::string, int64_t>> unnamed;
};

/// Adds to `fits` how a row of blocks fits, each behind the one before. Throws the Misfit of the
/// first that does not; `fits` then has those before it.
void fit_row(const std::vector<KeptBlock>& blocks, Signal signal, std::vector<Fit>& fits);

/// Moves `unnamed` widths into `use` where the output of the whole row stays as it is without them,
/// and where the blocks behind can take what is narrowed. Returns the places of the blocks that
/// keep more than was asked for, beside the dimensions that stay whole. The row must fit as it is.
std::vector<std::pair<size_t, std::string>> narrow(std::vector<KeptBlock>& blocks,
                                                   const Signal& input);

}  // namespace nsn::detail
