#pragma once

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <string>

namespace nsn::detail {

/// The place of a name in a table; throws c10::ValueError that lists them where it is not there.
template <size_t n>
size_t find_name(const std::array<const char*, n>& names, const std::string& name,
                 const char* what) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    std::string known;
    for (const char* each : names) known += (known.empty() ? "" : ", ") + std::string(each);
    TORCH_CHECK_VALUE(false, "nsn: unknown ", what, " '", name, "'. Use one of ", known, ".");
  }
  return static_cast<size_t>(found - names.begin());
}

}  // namespace nsn::detail
