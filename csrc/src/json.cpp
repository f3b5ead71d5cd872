#include "json.h"

#include <set>
#include <utility>
#include <vector>

namespace nsn::detail {

Json parse_json(const std::string& text, int most_depth, std::string& problem) {
  // The parser takes NUL for the end, and would pass over what follows.
  if (text.find('\0') != std::string::npos) {
    problem = "is no JSON: it has a NUL byte";
    return {};
  }
  std::vector<std::set<std::string>> open;  // the fields seen in each object around
  const auto callback = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > most_depth) {
      problem = "is nested deeper than " + std::to_string(most_depth) + " levels";
      return false;
    }
    if (event == Json::parse_event_t::object_start) open.emplace_back();
    if (event == Json::parse_event_t::object_end && !open.empty()) open.pop_back();
    if (event == Json::parse_event_t::key && !open.empty()) {
      auto key = parsed.get<std::string>();
      if (problem.empty() && !open.back().insert(key).second) {
        problem = "has the field '" + key + "' twice in one object";
      }
    }
    return true;
  };
  try {
    Json json = Json::parse(text, callback);
    return problem.empty() ? json : Json();
  } catch (const nlohmann::json::exception& error) {
    problem = std::string("is no JSON: ") + error.what();
    return {};
  }
}

}  // namespace nsn::detail
