#pragma once

#include <cstdint>
#include <initializer_list>

#include "nsn/values/layout.h"

namespace nsn::detail {

/// Counts of naturals that stay at 2^63 - 1 rather than overflow.
int64_t saturating_add(int64_t a, int64_t b);
int64_t saturating_product(std::initializer_list<int64_t> factors);

/// The product of the kept extents, from axis `first` on.
int64_t kept_numel(const Layout& layout, size_t first = 0);

}  // namespace nsn::detail
