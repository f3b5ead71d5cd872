#pragma once

#include <string>
#include <vector>

#include <c10/core/ScalarType.h>
#include <nsn/network/network.h>
#include <nsn/network/parameter_table.h>
#include <nsn/visibility.h>

namespace nsn {

/// Writes sub-networks, default all that are listed, as they evaluate, to a file for the runtime,
/// which runs them without LibTorch (nsn/runtime/session.h). It holds one copy of each weight for
/// all of them, of which leading slices are parts, and copies of other slices (fewer heads, gates
/// of a narrower width); the smallest sub-network's first, so that the beginning of the file is a
/// file of the smaller ones. The file is either complete or as it was before.
///
/// `weights`: what those of products and convolutions (in one group) are rounded to, kFloat,
/// kHalf, kBFloat16 or kChar; all is computed in float32. kChar has a scale for each row, the
/// row's largest weight by 127, so that each leading slice is of the same numbers.
///
/// Throws c10::ValueError for what it cannot hold: parameters of other dtypes than float32, weights
/// that are too large for their type or not finite, and blocks of one's own; FileError where the
/// system refuses.
NSN_API void write_runtime(const Network& net, const std::string& path,
                           const std::vector<std::string>& subnetworks = {},
                           at::ScalarType weights = at::kFloat);
NSN_API void write_runtime(const ParameterTable& network, const std::string& path,
                           const std::vector<std::string>& subnetworks = {},
                           at::ScalarType weights = at::kFloat);

}  // namespace nsn
