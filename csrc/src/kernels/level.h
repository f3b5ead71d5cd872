#pragma once

#include <string_view>
#include <vector>

// The kernels of this folder know no torch: they compute on pointers, one task at a time, and leave
// it to their callers to spread tasks over threads. Each is written once, with Google Highway, and
// compiled for every level of vectors that there is (per_level.h).

namespace nsn::kernels {

/// What vectors a processor has. x86-64's levels are those of its psABI: v2 (SSE4.2), v3 (AVX2 and
/// FMA), v4 (AVX-512 F, BW, CD, DQ, VL). Other architectures have their baseline alone.
enum class Level { kBaseline, kV2, kV3, kV4 };

/// "baseline", "v2", "v3", "v4".
std::string_view name_of(Level level);

/// The levels that this processor has, the least first.
std::vector<Level> supported_levels();

/// The level that the kernels run at in this process: the highest that the processor has, or the
/// one that the environment variable NSN_CPU_LEVEL names. Read once. Throws std::invalid_argument
/// where that is no level, or none that the processor has.
Level level();

}  // namespace nsn::kernels
