#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace nsn::detail {

/// Keeps the order of fields, which it looks for one after another: for objects of few fields.
using Json = nlohmann::ordered_json;

/// Sorts the fields: for objects of many.
using SortedJson = nlohmann::json;

/// What parse_json takes.
struct JsonLimits {
  int depth;
  /// Of one object.
  size_t fields;
};

/// Parses JSON that may be anybody's. Where the text is no JSON, an object has a field twice (which
/// a parser would silently overwrite), or it is beyond `limits`, says so in `problem` ("is no JSON:
/// ...") and returns null. Takes memory and time in proportion to the text; Json takes the number
/// of fields of one object as often as there are fields.
template <typename AnyJson>
AnyJson parse_json(const std::string& text, const JsonLimits& limits, std::string& problem);

}  // namespace nsn::detail
