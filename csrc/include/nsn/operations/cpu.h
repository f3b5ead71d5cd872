#pragma once

#include <string>
#include <vector>

#include <nsn/visibility.h>

namespace nsn {

/// The level of vectors that the library's kernels run at in this process, after x86-64's psABI:
/// "v2" (SSE4.2), "v3" (AVX2 and FMA) or "v4" (AVX-512); "baseline" on other architectures. The
/// highest that the processor has, or the one that the environment variable NSN_CPU_LEVEL names,
/// read once. Throws c10::ValueError where that is no level, or none that the processor has; so
/// does the making of a network.
NSN_API std::string cpu_level();

/// The levels that this processor has, the least first.
NSN_API std::vector<std::string> cpu_levels();

}  // namespace nsn
