#pragma once

#include <string>
#include <vector>

#include <nsn/network/network.h>
#include <nsn/network/parameter_table.h>
#include <nsn/visibility.h>

namespace nsn {

/// Writes sub-networks, default all that are listed, as they evaluate, to a file for the runtime,
/// which runs them without LibTorch (nsn/runtime/session.h). It holds one copy of each weight for
/// all of them, the smallest sub-network's first, so that the beginning of the file is a file of
/// the smaller ones. The file is either complete or as it was before.
///
/// Throws c10::ValueError for what it cannot hold: parameters of other dtypes than float32, and
/// blocks of one's own; FileError where the system refuses.
NSN_API void write_runtime(const Network& net, const std::string& path,
                           const std::vector<std::string>& subnetworks = {});
NSN_API void write_runtime(const ParameterTable& network, const std::string& path,
                           const std::vector<std::string>& subnetworks = {});

}  // namespace nsn
