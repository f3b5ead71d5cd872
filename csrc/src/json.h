#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace nsn::detail {

/// Keeps the order of fields.
using Json = nlohmann::ordered_json;

/// Parses JSON that may be anybody's. Where the text is no JSON, an object has a field twice (which
/// a parser would silently overwrite), or it is nested deeper than `most_depth`, says so in
/// `problem` ("is no JSON: ...") and returns null.
Json parse_json(const std::string& text, int most_depth, std::string& problem);

}  // namespace nsn::detail
