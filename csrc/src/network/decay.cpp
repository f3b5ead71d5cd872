#include "nsn/network/decay.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <cmath>
#include <functional>
#include <map>

namespace nsn {

std::vector<DecayGroup> decay_groups(const ParameterTable& network, double weight_decay,
                                     const std::string& of) {
  TORCH_CHECK_VALUE(weight_decay >= 0.0 && std::isfinite(weight_decay),
                    "nsn::param_groups: weight_decay must be at least 0, but got ", weight_decay,
                    ".");
  const std::vector<double> coefficients =
      of.empty() ? std::vector<double>(network.size(), 1.0) : network.core().merge_coefficients(of);
  std::map<double, DecayGroup, std::greater<>> groups;
  const auto& table = network.description().parameters();
  for (const size_t place : c10::irange(table.size())) {
    const auto& parameter = table[place];
    if (parameter.is_buffer) continue;
    const double decay = parameter.decays ? weight_decay * coefficients[place] : 0.0;
    TORCH_CHECK_VALUE(decay >= 0.0, "nsn::param_groups: sub-network '", of,
                      "' has the negative merge coefficient ", coefficients[place],
                      " in parameter '", parameter.name,
                      "', which no decay can follow. Leave out `of`.");
    DecayGroup& group = groups[decay];
    group.weight_decay = decay;
    group.parameters.push_back(network[place]);
    group.places.push_back(place);
  }
  std::vector<DecayGroup> result;
  for (auto& [decay, group] : groups) {
    static_cast<void>(decay);
    result.push_back(std::move(group));
  }
  return result;
}

}  // namespace nsn
