#pragma once

#include <vector>

#include "nsn/program/program.h"

namespace nsn::detail {

/// The shape of one sample that a step makes of inputs of these shapes. Throws c10::ValueError
/// where inputs, operands and attributes do not fit.
Shape shape_of_step(const Step& step, const std::vector<Shape>& inputs);

}  // namespace nsn::detail
