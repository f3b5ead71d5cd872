#pragma once

#include <ATen/core/Tensor.h>

#include "nsn/values/layout.h"

namespace nsn::detail {

/// Throws c10::ValueError, with a remedy, where x is no batch of samples of a shape and of a dtype
/// (or, where that is floating, of any such).
void check_input(const at::Tensor& x, const Shape& shape, at::ScalarType dtype);

}  // namespace nsn::detail
