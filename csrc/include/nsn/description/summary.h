#pragma once

#include <cstdint>
#include <iosfwd>
#include <map>
#include <string>
#include <vector>

#include <nsn/description/description.h>
#include <nsn/visibility.h>

namespace nsn {

/// What a sub-network makes of one block.
struct BlockSummary {
  std::string name, type;
  /// Each named dimension: how much is kept, and of how much.
  struct Width {
    std::string name;
    int64_t kept, full;
  };
  std::vector<Width> widths;
  /// The shape of one sample behind the block.
  Shape output;
  /// Elements that the sub-network reads, and how many of them are its own alone.
  int64_t parameters, private_parameters;
  /// Of one sample: two for each multiply-add of products, convolutions and attention.
  int64_t flops;
};

/// What a sub-network is.
struct SubnetworkSummary {
  std::string name;
  std::vector<BlockSummary> blocks;
  /// Elements that it reads, of all blocks (a tied parameter once), how many are its own alone, and
  /// their bytes as the description has them; buffers apart.
  int64_t parameters, private_parameters, bytes;
  int64_t flops;
  /// The other sub-networks: how many of these elements they read too.
  std::vector<std::pair<std::string, int64_t>> shared;
};

/// All sub-networks, `base` first.
NSN_API std::vector<SubnetworkSummary> describe(const Description& description);

/// A table for people.
NSN_API std::ostream& operator<<(std::ostream& stream,
                                 const std::vector<SubnetworkSummary>& summaries);

}  // namespace nsn
