#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include <nsn/network/network.h>
#include <nsn/visibility.h>

namespace nsn {

/// Makes the running statistics of batch norms anew, for the sub-networks named (default: all
/// listed): each becomes the mean over `batches`, x: (B, *input), of what the sub-network sees,
/// nothing being dropped. Statistics that sub-networks share become the mean over those named.
/// Weights stay as they are. Source: Yu & Huang, "Universally Slimmable Networks and Improved
/// Training Techniques", 2019.
///
/// Throws c10::ValueError where there is no batch, or no batch norm.
NSN_API void recalibrate(const Network& net, const std::vector<at::Tensor>& batches,
                         const std::vector<std::string>& names = {});

}  // namespace nsn
