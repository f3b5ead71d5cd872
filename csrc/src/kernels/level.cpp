#include "kernels/level.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace nsn::kernels {

namespace {

#if defined(__x86_64__)
/// Of x86-64-v3 what __builtin_cpu_supports does not know with every compiler.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

Level chosen_level() {
  const std::vector<Level> supported = supported_levels();
  const char* wanted = std::getenv("NSN_CPU_LEVEL");
  if (wanted == nullptr || *wanted == '\0') {
    if (!supported.empty()) return supported.back();
    throw std::invalid_argument(
        "nsn needs a processor of level x86-64-v2 (SSE4.2) at least, and this one has less. Build "
        "and run on a newer one.");
  }
  std::string names;
  for (const Level each : supported) {
    if (name_of(each) == wanted) return each;
    names += (names.empty() ? "" : ", ") + std::string(name_of(each));
  }
  throw std::invalid_argument("NSN_CPU_LEVEL must name a level that this processor has (" + names +
                              "), but is '" + wanted +
                              "'. Set one of these, or unset it for the highest.");
}

}  // namespace

std::string_view name_of(Level level) {
  switch (level) {
    case Level::kV2:
      return "v2";
    case Level::kV3:
      return "v3";
    case Level::kV4:
      return "v4";
    default:
      return "baseline";
  }
}

std::vector<Level> supported_levels() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  std::vector<Level> result;
  if (!__builtin_cpu_supports("sse4.2")) return result;
  result.push_back(Level::kV2);
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2") || !has_f16c()) {
    return result;
  }
  result.push_back(Level::kV3);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    result.push_back(Level::kV4);
  }
  return result;
#else
  return {Level::kBaseline};
#endif
}

Level level() {
  static const Level chosen = chosen_level();
  return chosen;
}

}  // namespace nsn::kernels
