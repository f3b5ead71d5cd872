#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string>

// The names of dtypes in JSON: torch's in Python.

namespace nsn::detail {

/// "float32"; throws c10::ValueError for one that descriptions cannot have.
std::string dtype_name(at::ScalarType dtype);

/// The dtype of a name; nothing where there is none.
std::optional<at::ScalarType> dtype_named(const std::string& name);

}  // namespace nsn::detail
