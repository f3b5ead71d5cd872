#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nsn/network/core.h"

namespace nsn::detail {

/// The parameters as one lane of `pass` is to use them when it runs by itself:
/// what it gives back as their plain gradients becomes its part of the merged ones. Throws
/// c10::ValueError where that cannot be (Core::lane).
std::vector<at::Tensor> for_lane(const Description& description, at::TensorList parameters,
                                 const std::vector<Core::PassagePtr>& pass, size_t lane,
                                 bool training);

}  // namespace nsn::detail
