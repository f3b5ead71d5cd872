#pragma once

#include <string>

#include <nsn/description/description.h>
#include <nsn/visibility.h>

namespace nsn {

/// How packs run a sub-network in float32 on the CPU: its program with steps fused, and buffers in
/// one arena (docs/program.md). For people, one line a step:
///
///     %1 = convolve(%0, kernel 3x3, scaled, shifted, relu) -> (14, 14, 16) at 0  # stem.conv
///
/// Throws c10::ValueError for an unknown sub-network, and for one that packs run step by step,
/// since it is of another dtype.
NSN_API std::string plan_text(const Description& description, const std::string& subnetwork);

/// The same as JSON: {"steps": [{"kernel", "block", "inputs", "attributes", "value", "shape",
/// "offset"}], "arena_bytes", "flops"}, the last two of one sample; an offset is in bytes, and null
/// where the caller's memory is meant.
NSN_API std::string plan_json(const Description& description, const std::string& subnetwork,
                              int indent = -1);

}  // namespace nsn
