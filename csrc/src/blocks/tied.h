#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <utility>

namespace nsn::detail {

/// A pass's slices of parameters that several blocks use, by place in the table and sub-network.
/// One share node makes all of one parameter, so that each lane's gradient sums up over its uses
/// before the rule merges the lanes.
struct TiedLanes {
  std::map<std::pair<size_t, size_t>, at::Tensor> slices;
};

}  // namespace nsn::detail
