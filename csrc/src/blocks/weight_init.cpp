#include "nsn/blocks/weight_init.h"

#include <array>

#include "values/names.h"

namespace nsn {

namespace {

// In the order of the enumerators.
constexpr std::array<const char*, 2> kNames = {"kaiming_uniform", "xavier_uniform"};

}  // namespace

std::string to_string(WeightInit init) { return kNames[static_cast<size_t>(init)]; }

WeightInit weight_init_from_string(const std::string& name) {
  return static_cast<WeightInit>(detail::find_name(kNames, name, "weight_init"));
}

}  // namespace nsn
