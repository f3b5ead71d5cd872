#pragma once

#include <set>
#include <string>

namespace nsn {

/// Names of private parts: small parts of a block that each sub-network owns by itself.
using Parts = std::set<std::string>;

}  // namespace nsn
