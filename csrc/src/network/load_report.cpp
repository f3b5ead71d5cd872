#include "nsn/network/load_report.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "description/subnetworks.h"

namespace nsn {

std::vector<std::string> LoadReport::loaded(const std::vector<std::string>& subnetworks) const {
  std::vector<std::string> result;
  for (const std::string& name : subnetworks) {
    if (missing.count(name) == 0) result.push_back(name);
  }
  return result;
}

void LoadReport::check_loaded(const std::vector<std::string>& wanted,
                              const std::vector<std::string>& subnetworks) const {
  for (const std::string& name : wanted) {
    // One of a grid reads what base does.
    const bool is_listed =
        std::find(subnetworks.begin(), subnetworks.end(), name) != subnetworks.end();
    if (missing.count(is_listed ? name : detail::kBase) == 0) continue;
    std::string names;
    for (const std::string& each : loaded(subnetworks)) {
      names += (names.empty() ? "'" : ", '") + each + "'";
    }
    TORCH_CHECK_VALUE(false, "nsn::Network: sub-network '", name, "' was not loaded; there are ",
                      names, ". Add it with nsn::load_rest(net, path).");
  }
}

}  // namespace nsn
