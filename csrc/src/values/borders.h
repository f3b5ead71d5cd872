#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "nsn/values/layout.h"
#include "nsn/visibility.h"

namespace nsn::detail {

/// Where the layouts of one tensor are parted: in each dimension, how many elements lie behind each
/// border between its factors.
class NSN_API Borders {
 public:
  void add(const Layout& layout);

  /// Whether a layout has no other borders and can be parted at all of these. Any of those that fit
  /// have a common view: it needs some of these borders, and what can be parted at all of them can
  /// be at some.
  bool fit(const Layout& layout) const;

  /// An axis of the dimension `dim`, parted at all of its borders; none where it cannot be.
  std::optional<std::vector<Axis::Factor>> part(const Axis& axis, size_t dim) const;

 private:
  /// Largest first.
  std::vector<std::vector<int64_t>> borders_;
};

}  // namespace nsn::detail
