#include "values/dtypes.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace nsn::detail {

namespace {

const std::vector<std::pair<std::string, at::ScalarType>>& dtypes() {
  static const std::vector<std::pair<std::string, at::ScalarType>> all = {
      {"float32", at::kFloat},     {"float64", at::kDouble}, {"float16", at::kHalf},
      {"bfloat16", at::kBFloat16}, {"int64", at::kLong},     {"int32", at::kInt},
      {"int16", at::kShort},       {"int8", at::kChar},      {"uint8", at::kByte}};
  return all;
}

}  // namespace

std::string dtype_name(at::ScalarType dtype) {
  const auto found = std::find_if(dtypes().begin(), dtypes().end(),
                                  [&](const auto& each) { return each.second == dtype; });
  TORCH_CHECK_VALUE(found != dtypes().end(), "nsn::Description: dtype ", dtype,
                    " has no name in the schema. Use float32.");
  return found->first;
}

std::optional<at::ScalarType> dtype_named(const std::string& name) {
  const auto found = std::find_if(dtypes().begin(), dtypes().end(),
                                  [&](const auto& each) { return each.first == name; });
  return found == dtypes().end() ? std::nullopt : std::optional(found->second);
}

}  // namespace nsn::detail
