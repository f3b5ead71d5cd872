#include "json.h"

#include <set>
#include <utility>
#include <vector>

namespace nsn::detail {

namespace {

/// Ends the parsing at once: what follows may be as long and as deep as it likes.
struct Refusal {
  std::string problem;
};

}  // namespace

template <typename AnyJson>
AnyJson parse_json(const std::string& text, const JsonLimits& limits, std::string& problem) {
  // The parser takes NUL for the end, and would pass over what follows.
  if (text.find('\0') != std::string::npos) {
    problem = "is no JSON: it has a NUL byte";
    return {};
  }
  std::vector<std::set<std::string>> open;  // the fields seen in each object around
  const auto callback = [&](int depth, typename AnyJson::parse_event_t event, AnyJson& parsed) {
    if (depth > limits.depth) {
      throw Refusal{"is nested deeper than " + std::to_string(limits.depth) + " levels"};
    }
    if (event == AnyJson::parse_event_t::object_start) open.emplace_back();
    if (event == AnyJson::parse_event_t::object_end) open.pop_back();
    if (event == AnyJson::parse_event_t::key) {
      auto key = parsed.template get<std::string>();
      if (open.back().size() == limits.fields) {
        throw Refusal{"has an object of more than " + std::to_string(limits.fields) + " fields"};
      }
      if (open.back().count(key) > 0) {
        throw Refusal{"has the field '" + key + "' twice in one object"};
      }
      open.back().insert(std::move(key));
    }
    return true;
  };
  try {
    return AnyJson::parse(text, callback);
  } catch (const Refusal& refusal) {
    problem = refusal.problem;
  } catch (const nlohmann::json::exception& error) {
    problem = std::string("is no JSON: ") + error.what();
  }
  return {};
}

template Json parse_json(const std::string&, const JsonLimits&, std::string&);
template SortedJson parse_json(const std::string&, const JsonLimits&, std::string&);

}  // namespace nsn::detail
