#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "blocks/reading.h"
#include "nsn/description/description.h"
#include "values/dtypes.h"
#include "values/fields.h"
#include "values/json.h"
#include "values/rules.h"

// Description to and from JSON. docs/description.md is the schema for people.

namespace nsn {

namespace {

using detail::Fields;
using detail::Json;

constexpr int64_t kSchemaVersion = 1;
// What bounds the time that a description takes that may be anybody's.
constexpr detail::JsonLimits kLimits{.depth = 32, .fields = 4096, .values = 2'000'000};

at::ScalarType read_dtype(Fields& fields) {
  const std::string name = fields.string("dtype");
  const auto found = detail::dtype_named(name);
  TORCH_CHECK_VALUE(found, "nsn::Description: ", fields.where(), ": unknown dtype '", name,
                    "'. Use float32, float64, float16, bfloat16, or an integral one such as "
                    "int64.");
  return *found;
}

merge::Rule read_rule(const Json& json, const std::string& where,
                      const std::map<std::string, merge::Rule>& rules) {
  Fields fields(json, where);
  const std::string name = fields.string("rule");
  const merge::KnownRule* known = merge::find_rule(name);
  if (known == nullptr) {
    std::string names;
    for (const merge::KnownRule& each : merge::known_rules()) {
      names += (names.empty() ? "" : ", ") + std::string(each.name);
    }
    TORCH_CHECK_VALUE(false, "nsn::Description: ", where, ": unknown merge rule '", name,
                      "'. Use one of ", names, ".");
  }
  if (known->takes == merge::Takes::kWeights) {
    const Json& weights = fields.get("weights");
    Fields(weights, where + ": 'weights'");
    merge::Weights coefficients;
    for (const auto& [subnetwork, value] : weights.items()) {
      coefficients.emplace_back(subnetwork, fields.as_number(value, subnetwork));
    }
    fields.finish();
    return merge::weighted(std::move(coefficients));
  }
  if (known->takes == merge::Takes::kFunction) {
    const std::string function = fields.string("name");
    fields.finish();
    const auto found = rules.find(function);
    return found == rules.end() ? merge::missing_function(function) : found->second;
  }
  fields.finish();
  return merge::make_rule(*known);
}

Json write_rule(const merge::Rule& rule) {
  if (!rule.is_builtin()) return {{"rule", "function"}, {"name", rule.name()}};
  Json json{{"rule", rule.name()}};
  for (const auto& [name, coefficient] : rule.weights()) json["weights"][name] = coefficient;
  return json;
}

/// A block's own fields are read by its type; `merge` and `name` are the network's.
void read_block(const Json& json, const Supplied& supplied, NetworkOptions& options) {
  const std::string name = Fields(json, "a block").string("name");
  std::optional<merge::Rule> rule;
  Json own = json;
  if (const auto found = json.find("merge"); found != json.end()) {
    rule = read_rule(*found, "block '" + name + "': 'merge'", supplied.rules);
    own.erase("merge");
  }
  options.block(name, detail::read_block(own, supplied), std::move(rule));
}

/// A count where the number has no point, else a fraction.
Width read_width(const Fields& fields, const Json& json, const std::string& name) {
  if (json.is_number_integer()) return fields.as_integer(json, name);
  return fields.as_number(json, name);
}

Json write_width(const Width& width) {
  return std::visit([](auto value) { return Json(value); }, width.value());
}

void read_subnetwork(const Json& json, NetworkOptions& options) {
  const std::string name = Fields(json, "a sub-network").string("name");
  Fields fields(json, "sub-network '" + name + "'");
  fields.string("name");
  SubnetworkOptions subnetwork;
  if (const Json* named = fields.find("blocks")) {
    std::vector<std::string> blocks;
    for (const Json& block : fields.as_array(*named, "blocks")) {
      blocks.push_back(fields.as_string(block, "blocks"));
    }
    subnetwork = SubnetworkOptions(std::move(blocks));
  }
  if (const Json* dropout = fields.find("dropout")) {
    Fields(*dropout, fields.where() + ": 'dropout'");
    for (const auto& [block, probability] : dropout->items()) {
      subnetwork.dropout(block, fields.as_number(probability, block));
    }
  }
  if (const Json* width = fields.find("width"); width != nullptr && width->is_number()) {
    subnetwork.width(read_width(fields, *width, "width"));
  } else if (width != nullptr) {
    Fields(*width, fields.where() + ": 'width'");
    for (const auto& [block, kept] : width->items()) {
      if (!kept.is_object()) {
        subnetwork.width(block, read_width(fields, kept, block));
        continue;
      }
      for (const auto& [dimension, count] : kept.items()) {
        subnetwork.width(block, dimension, read_width(fields, count, dimension));
      }
    }
  }
  fields.finish();
  options.subnetwork(name, std::move(subnetwork));
}

void read_axis(const Json& json, NetworkOptions& options) {
  const std::string name = Fields(json, "an axis").string("name");
  Fields fields(json, "axis '" + name + "'");
  fields.string("name");
  const auto strings = [&](const Json& array, const char* field) {
    std::vector<std::string> result;
    for (const Json& each : fields.as_array(array, field)) {
      result.push_back(fields.as_string(each, field));
    }
    return result;
  };
  const Json* drops = fields.find("drops");
  if (drops != nullptr) {
    options.axis(name, Depths{strings(*drops, "drops")});
  } else {
    const Json* given = fields.find("widths");
    if (given == nullptr) fields.finish();  // an unknown field is what was meant
    TORCH_CHECK_VALUE(given != nullptr, "nsn::Description: ", fields.where(),
                      " has neither 'widths' nor 'drops'. Give one of them.");
    Widths widths;
    for (const Json& width : fields.as_array(*given, "widths")) {
      widths.widths.push_back(read_width(fields, width, "widths"));
    }
    if (const Json* of = fields.find("of")) widths.of = strings(*of, "of");
    options.axis(name, std::move(widths));
  }
  fields.finish();
}

Json write_axis(const GridAxis& axis) {
  Json json{{"name", axis.name}};
  if (const auto* depths = std::get_if<Depths>(&axis.range)) {
    json["drops"] = depths->drops;
    return json;
  }
  const auto& widths = std::get<Widths>(axis.range);
  for (const Width& width : widths.widths) json["widths"].push_back(write_width(width));
  json["of"] = widths.of;
  return json;
}

}  // namespace

Description Description::from_json(const std::string& text, const Supplied& supplied) {
  std::string problem;
  const auto json = detail::parse_json(text, kLimits, problem);
  TORCH_CHECK_VALUE(problem.empty(), "nsn::Description: the text ", problem, ".");
  Fields document(json, "the description");
  const int64_t version = document.integer("nsn");
  TORCH_CHECK_VALUE(version == kSchemaVersion, "nsn::Description: this library reads version ",
                    kSchemaVersion, " of the schema, but the description has version ", version,
                    ". Use a version of nsn that knows it.");
  NetworkOptions options;

  Fields input(document.get("input"), "'input'");
  Shape shape;
  for (const Json& extent : input.as_array(input.get("shape"), "shape")) {
    shape.push_back(input.as_integer(extent, "shape"));
  }
  const at::ScalarType dtype = input.has("dtype") ? read_dtype(input) : at::kFloat;
  input.finish();
  options.input(std::move(shape), dtype);
  if (document.has("dtype")) options.dtype(read_dtype(document));

  for (const Json& block : document.as_array(document.get("blocks"), "blocks")) {
    read_block(block, supplied, options);
  }
  if (const Json* subnetworks = document.find("subnetworks")) {
    for (const Json& subnetwork : document.as_array(*subnetworks, "subnetworks")) {
      read_subnetwork(subnetwork, options);
    }
  }
  if (const Json* grid = document.find("grid")) {
    for (const Json& axis : document.as_array(*grid, "grid")) read_axis(axis, options);
  }
  if (const Json* rule = document.find("merge"))
    options.merge(read_rule(*rule, "'merge'", supplied.rules));
  document.finish();
  return Description(options);
}

std::string Description::to_json(int indent) const {
  Json json;
  json["nsn"] = kSchemaVersion;
  json["input"] = {{"shape", input_}, {"dtype", detail::dtype_name(dtype_)}};
  if (!at::isFloatingType(dtype_) && parameter_dtype_ != at::kFloat) {
    json["dtype"] = detail::dtype_name(parameter_dtype_);
  }
  json["blocks"] = Json::array();
  for (const NamedBlock& block : blocks_) {
    Json each = detail::write_block(block.name, *block.block);
    if (block.overrides_rule) each["merge"] = write_rule(block.rule);
    json["blocks"].push_back(std::move(each));
  }
  json["subnetworks"] = Json::array();
  for (const Subnetwork& subnetwork : *subnetworks_) {
    Json each{{"name", subnetwork.name}, {"blocks", Json::array()}};
    for (const std::string& name : subnetwork.options.blocks()) each["blocks"].push_back(name);
    for (const auto& [name, probability] : subnetwork.options.dropout()) {
      each["dropout"][name] = probability;
    }
    for (const auto& [name, dimension, width] : subnetwork.options.widths()) {
      if (dimension.empty()) {
        each["width"][name] = write_width(width);
      } else {
        each["width"][name][dimension] = write_width(width);
      }
    }
    json["subnetworks"].push_back(std::move(each));
  }
  for (const GridAxis& axis : grid_.axes()) json["grid"].push_back(write_axis(axis));
  json["merge"] = write_rule(merge_);
  try {
    return json.dump(indent);
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false, "nsn::Description: names must be UTF-8: ", error.what(),
                      ". Rename the merge rule.");
  }
}

}  // namespace nsn
