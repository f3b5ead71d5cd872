#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include <nsn/visibility.h>

namespace nsn {

/// What came of a checkpoint's file (nsn/checkpoint/checkpoint.h).
struct NSN_API LoadReport {
  /// The sub-networks of whose parameters some were not read. Default: none.
  std::set<std::string> missing = {};
  /// How many bytes were read, the header's among them. Default: 0, no file.
  uint64_t bytes_read = 0;

  /// Those of `subnetworks` that are not missing, in order.
  std::vector<std::string> loaded(const std::vector<std::string>& subnetworks) const;

  /// Throws c10::ValueError where one of `wanted` is missing; `subnetworks` are all that are
  /// listed.
  void check_loaded(const std::vector<std::string>& wanted,
                    const std::vector<std::string>& subnetworks) const;
};

}  // namespace nsn
