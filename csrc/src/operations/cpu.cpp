#include "nsn/operations/cpu.h"

#include <c10/util/Exception.h>

#include <stdexcept>

#include "kernels/level.h"

namespace nsn {

std::string cpu_level() {
  try {
    return std::string(kernels::name_of(kernels::level()));
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

std::vector<std::string> cpu_levels() {
  std::vector<std::string> result;
  for (const kernels::Level each : kernels::supported_levels()) {
    result.emplace_back(kernels::name_of(each));
  }
  return result;
}

}  // namespace nsn
