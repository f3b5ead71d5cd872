#pragma once

#include <cstdint>
#include <set>
#include <string>

namespace nsn {

/// What came of a checkpoint's file (nsn/checkpoint/checkpoint.h).
struct LoadReport {
  /// The sub-networks of whose parameters some were not read. Default: none.
  std::set<std::string> missing;
  /// How many bytes were read, the header's among them. Default: 0, no file.
  uint64_t bytes_read = 0;
};

}  // namespace nsn
