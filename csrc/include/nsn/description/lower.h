#pragma once

#include <string>

#include <nsn/description/description.h>
#include <nsn/program/program.h>
#include <nsn/visibility.h>

namespace nsn {

/// What a sub-network computes in inference, in primitives: the one way down from a description to
/// copies, exports and packs. Throws c10::ValueError for an unknown sub-network, and where a block
/// of one's own appends steps that do not fit, or give another shape than its `fit` says.
NSN_API Program lower(const Description& description, const std::string& subnetwork);

}  // namespace nsn
