#pragma once

#include <cstdint>
#include <memory>

namespace nsn::detail {
class Workspace;
}

namespace nsn::functional {

/// Where an operation lays its results.
struct Memory {
  /// What buffers are taken from. Default: none, torch's allocator.
  std::shared_ptr<detail::Workspace> workspace;
  /// Elements to leave free behind the results in their buffer. Default: 0.
  int64_t room = 0;
};

}  // namespace nsn::functional
