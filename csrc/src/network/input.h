#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "nsn/values/layout.h"

namespace nsn::detail {

/// Throws c10::ValueError, with a remedy, where x is no batch of samples of a shape and of a dtype
/// (or, where that is floating, of any such). `who` asks for it.
void check_input(const at::Tensor& x, const Shape& shape, at::ScalarType dtype,
                 const std::string& who = "Network");

}  // namespace nsn::detail
