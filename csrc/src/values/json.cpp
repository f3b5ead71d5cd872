#include "values/json.h"

#include <set>
#include <utility>
#include <vector>

namespace nsn::detail {

bool JsonVisitor::visit(const std::string& text) {
  // The parser takes NUL for the end, and would pass over what follows.
  if (text.find('\0') != std::string::npos) {
    problem = "is no JSON: it has a NUL byte";
    return false;
  }
  return Json::sax_parse(text, this);
}

bool JsonVisitor::parse_error(size_t position, const std::string& token,
                              const nlohmann::json::exception& error) {
  static_cast<void>(position);
  static_cast<void>(token);
  problem = std::string("is no JSON: ") + error.what();
  return false;
}

namespace {

/// Holds a text against limits, before anything is built of it.
class Checker : public JsonVisitor {
 public:
  explicit Checker(const JsonLimits& limits) : limits_(limits) {}

  bool start_object(size_t elements) override {
    static_cast<void>(elements);
    fields_.emplace_back();
    return open();
  }
  bool start_array(size_t elements) override {
    static_cast<void>(elements);
    return open();
  }
  bool end_object() override {
    fields_.pop_back();
    --depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(std::string& name) override {
    if (fields_.back().size() == limits_.fields) {
      problem = "has an object of more than " + std::to_string(limits_.fields) + " fields";
    } else if (!fields_.back().insert(name).second) {
      problem = "has the field '" + name + "' twice in one object";
    }
    return problem.empty();
  }

 private:
  bool open() {
    if (++depth_ > limits_.depth) {
      problem = "is nested deeper than " + std::to_string(limits_.depth) + " levels";
      return false;
    }
    return other();
  }

  /// A value of any kind.
  bool other() override {
    if (++values_ > limits_.values) {
      problem = "has more than " + std::to_string(limits_.values) + " values";
    }
    return problem.empty();
  }

  JsonLimits limits_;
  size_t depth_ = 0, values_ = 0;
  std::vector<std::set<std::string>> fields_;  // of each object around
};

}  // namespace

Json parse_json(const std::string& text, const JsonLimits& limits, std::string& problem) {
  Checker checker(limits);
  // Twice through the text: the parser's own callbacks take quadratic time.
  if (checker.visit(text)) return Json::parse(text);
  problem = checker.problem;
  return {};
}

}  // namespace nsn::detail
