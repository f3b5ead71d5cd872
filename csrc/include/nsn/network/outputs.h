#pragma once

#include <ATen/core/Tensor.h>
#include <torch/ordered_dict.h>

#include <string>

namespace nsn {

/// The outputs of a joint pass: sub-network's name -> (B, *output), in the order asked for.
using Outputs = torch::OrderedDict<std::string, at::Tensor>;

}  // namespace nsn
