#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>

namespace nsn::detail {

/// Keeps the order of fields.
using Json = nlohmann::ordered_json;

/// What parse_json takes.
struct JsonLimits {
  size_t depth;
  /// Of one object, which looks for its fields one after another.
  size_t fields;
  /// Of the document, objects, arrays and what is in them.
  size_t values;
};

/// Parses JSON that may be anybody's. Where the text is no JSON, an object has a field twice (which
/// a parser would silently overwrite), or it is beyond `limits`, says so in `problem` ("is no JSON:
/// ...") and returns null.
Json parse_json(const std::string& text, const JsonLimits& limits, std::string& problem);

/// Looks at JSON while it is parsed, and builds nothing; each call returns whether to go on. The
/// base of what wants to know of a few kinds of values only: all are refused.
class JsonVisitor : public nlohmann::json_sax<Json> {
 public:
  /// Whether the text is JSON and the visitor wanted all of it. Otherwise `problem` says what is
  /// wrong with the text ("is no JSON: ..."), or keeps what the visitor put there.
  bool visit(const std::string& text);

  bool null() override { return other(); }
  bool boolean(bool /*value*/) override { return other(); }
  bool number_integer(number_integer_t /*value*/) override { return other(); }
  bool number_unsigned(number_unsigned_t /*value*/) override { return other(); }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) override { return other(); }
  bool string(string_t& /*value*/) override { return other(); }
  bool binary(binary_t& /*value*/) override { return other(); }
  bool start_object(size_t /*elements*/) override { return other(); }
  bool key(string_t& /*value*/) override { return other(); }
  bool end_object() override { return other(); }
  bool start_array(size_t /*elements*/) override { return other(); }
  bool end_array() override { return other(); }
  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::json::exception& error) override;

  std::string problem;

 protected:
  virtual bool other() { return false; }
};

}  // namespace nsn::detail
