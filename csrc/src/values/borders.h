#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "nsn/values/layout.h"
#include "nsn/values/visibility.h"

namespace nsn::detail {

/// Where the layouts of one tensor are parted: in each dimension, how many elements lie behind each
/// border between its factors.
class NSN_API Borders {
 public:
  void add(const Layout& layout);

  /// Whether a layout has no other borders and can be parted at all of these: those that fit have a
  /// common view, whichever they are.
  bool fit(const Layout& layout) const;

  /// Largest first.
  const std::vector<int64_t>& of(size_t dim) const { return borders_[dim]; }

 private:
  std::vector<std::vector<int64_t>> borders_;
};

}  // namespace nsn::detail
