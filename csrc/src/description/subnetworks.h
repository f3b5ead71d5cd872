#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "nsn/description/description.h"

// Sub-networks as they are described, held against the blocks that there are.

namespace nsn::detail {

/// Where a sub-network keeps a block, among the places of those that it keeps, in order.
std::optional<size_t> position(const std::vector<size_t>& kept, size_t block);

/// How many blocks all sub-networks together may keep: each has a Fit of each, which a few bytes of
/// JSON ask for.
constexpr size_t kMostFits = 100'000;

/// The sub-network that has all blocks.
constexpr const char* kBase = "base";

/// "'a', 'b'", for a message.
std::string quoted(const std::vector<std::string>& names);

/// All names that a description knows, for a message.
std::string names_in(const Description& description);

/// What sub-networks name, made once for all of them.
struct BlockLookup {
  struct Dimensions {
    std::vector<std::string> names;
    std::unordered_map<std::string, Dimension> by_name;

    /// The dimension of a name; the only one there is, of the block or of an inner block of that
    /// name. None where there is no such, or several.
    const Dimension* find(const std::string& name) const;
  };

  explicit BlockLookup(const std::vector<Description::NamedBlock>& blocks);

  std::unordered_map<std::string, size_t> places;
  /// Of each block: how many it is with those inside, and what may be narrowed.
  std::vector<size_t> counts;
  std::vector<Dimensions> dimensions;
};

/// A sub-network of what its options say: the blocks that it keeps, and how each fits. Where it
/// finds parameters, and its count, are for the whole description to say. Throws
/// c10::ValueError naming the sub-network, what was found, and the remedy.
Description::Subnetwork make_subnetwork(const std::string& name, const SubnetworkOptions& options,
                                        const std::vector<Description::NamedBlock>& blocks,
                                        const BlockLookup& lookup, const Shape& input,
                                        at::ScalarType dtype);

}  // namespace nsn::detail
