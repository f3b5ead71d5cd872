#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "nsn/program/program.h"

// Primitives by plain operations of ATen, on any device and dtype.

namespace nsn::detail {

/// A step's tensors, by role.
using Operands = std::map<std::string, at::Tensor>;

/// What a primitive makes of a batch's values, in inference. Inputs that nobody else can read may
/// be written over. A `Call` is not for this function.
at::Tensor evaluate(const Primitive& primitive, std::vector<at::Tensor> inputs,
                    const Operands& operands);

/// The scale and the shift, of float64, that a batch norm is in inference, or a step of scale and
/// shift, stacked: (2, features).
at::Tensor fold(const Step& step, const Operands& operands);

}  // namespace nsn::detail
