#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nsn/values/merge.h"

// The built-in rules that are no sum with coefficients: functions of all lanes' gradients.

namespace nsn::merge {

at::Tensor merge_by_surgery(const std::vector<LaneGradient>& gradients);
at::Tensor merge_with_equal_norms(const std::vector<LaneGradient>& gradients);

}  // namespace nsn::merge
