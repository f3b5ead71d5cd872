#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include <nsn/network/network.h>
#include <nsn/visibility.h>

namespace nsn {

/// Takes a sub-network's name and its output, returns a scalar.
using LaneLoss = std::function<at::Tensor(const std::string& name, const at::Tensor& output)>;

/// A joint step that holds the activations of one sub-network at a time: forward, loss and backward
/// of each named one (default: all listed) after the other, over one batch x: (B, *input). Leaves
/// in .grad what `joint`, the sum of the losses and one backward would leave; what sub-networks
/// have in common is computed anew for each. For linear rules. Returns the losses by name,
/// detached.
///
/// Throws c10::ValueError where a parameter has a function rule, where in training several of the
/// sub-networks share running statistics, or where `loss` returns no scalar.
NSN_API Outputs backward_by_lane(const Network& net, const at::Tensor& x, const LaneLoss& loss,
                                 const std::vector<std::string>& names = {});

}  // namespace nsn
