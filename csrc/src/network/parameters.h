#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string>

namespace nsn::detail {

/// Throws c10::ValueError where a floating input has another dtype than a parameter.
inline void check_dtype(const at::Tensor& x, const std::string& parameter, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(!at::isFloatingType(x.scalar_type()) || x.scalar_type() == dtype,
                    "nsn::Network: the input has dtype ", x.scalar_type(), ", but parameter '",
                    parameter, "' has ", dtype, ". Convert the batch or the network with to().");
}

}  // namespace nsn::detail
