#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <utility>

#include "values/json.h"

namespace nsn::detail {

/// One JSON object while it is read: each field is taken by name and kind, and what nobody took is
/// refused in the end.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    TORCH_CHECK_VALUE(object.is_object(), "nsn::Description: ", where_,
                      " must be a JSON object, but is ", object.type_name(), ".");
  }

  const std::string& where() const { return where_; }

  const Json* find(const std::string& name) {
    taken_.insert(name);
    const auto found = object_.find(name);
    return found == object_.end() ? nullptr : &*found;
  }

  const Json& get(const std::string& name) {
    const Json* value = find(name);
    TORCH_CHECK_VALUE(value != nullptr, "nsn::Description: ", where_, " lacks the field '", name,
                      "'. Add it.");
    return *value;
  }

  std::string string(const std::string& name) { return as_string(get(name), name); }
  int64_t integer(const std::string& name) { return as_integer(get(name), name); }
  int64_t option(const std::string& name) { return as_option(get(name), name); }
  double number(const std::string& name) { return as_number(get(name), name); }
  bool boolean(const std::string& name) {
    const Json& value = get(name);
    TORCH_CHECK_VALUE(value.is_boolean(), at(name), " must be true or false, but is ", found(value),
                      ".");
    return value.get<bool>();
  }
  bool has(const std::string& name) { return find(name) != nullptr; }

  std::string as_string(const Json& value, const std::string& name) const {
    TORCH_CHECK_VALUE(value.is_string(), at(name), " must be a string, but is ", found(value), ".");
    return value.get<std::string>();
  }
  int64_t as_integer(const Json& value, const std::string& name) const {
    const bool fits =
        value.is_number_integer() &&
        (!value.is_number_unsigned() ||
         value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
    TORCH_CHECK_VALUE(fits, at(name), " must be an integer below 2^63, but is ", found(value), ".");
    return value.get<int64_t>();
  }
  /// Of a block's options: small enough that what is computed from a few of them fits 2^63.
  int64_t as_option(const Json& value, const std::string& name) const {
    constexpr int64_t kMost = int64_t{1} << 30;
    const int64_t result = as_integer(value, name);
    TORCH_CHECK_VALUE(result >= -kMost && result <= kMost, at(name),
                      " must be at most 2^30, but is ", found(value), ".");
    return result;
  }
  double as_number(const Json& value, const std::string& name) const {
    TORCH_CHECK_VALUE(value.is_number(), at(name), " must be a number, but is ", found(value), ".");
    return value.get<double>();
  }
  const Json& as_array(const Json& value, const std::string& name) const {
    TORCH_CHECK_VALUE(value.is_array(), at(name), " must be an array, but is ", found(value), ".");
    return value;
  }

  /// Refuses fields that nobody asked for.
  void finish() const {
    for (const auto& [name, value] : object_.items()) {
      static_cast<void>(value);
      if (taken_.count(name) > 0) continue;
      std::string known;
      for (const std::string& each : taken_) known += (known.empty() ? "'" : ", '") + each + "'";
      TORCH_CHECK_VALUE(false, "nsn::Description: ", where_, " has an unknown field '", name,
                        "'. The fields are ", known, ".");
    }
  }

 private:
  std::string at(const std::string& name) const {
    return "nsn::Description: " + where_ + ": '" + name + "'";
  }
  static std::string found(const Json& value) {
    std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
    constexpr size_t kMost = 60;
    return text.size() > kMost ? text.substr(0, kMost) + "..." : text;
  }

  const Json& object_;
  std::string where_;
  std::set<std::string> taken_;
};

}  // namespace nsn::detail
