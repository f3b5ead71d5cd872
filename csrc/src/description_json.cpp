#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <utility>

#include "json.h"
#include "nsn/blocks/dense.h"
#include "nsn/description.h"

// Description to and from JSON. docs/description.md is the schema for people.

namespace nsn {

namespace {

using detail::Json;

constexpr int64_t kSchemaVersion = 1;
constexpr int kMostDepth = 32;

const std::vector<std::pair<std::string, at::ScalarType>>& dtypes() {
  static const std::vector<std::pair<std::string, at::ScalarType>> all = {
      {"float32", at::kFloat},     {"float64", at::kDouble}, {"float16", at::kHalf},
      {"bfloat16", at::kBFloat16}, {"int64", at::kLong},     {"int32", at::kInt},
      {"int16", at::kShort},       {"int8", at::kChar},      {"uint8", at::kByte}};
  return all;
}

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

merge::Rule read_rule(const Json& json, const std::string& where,
                      const std::map<std::string, merge::Rule>& rules) {
  Fields fields(json, where);
  const std::string name = fields.string("rule");
  if (name == "weighted") {
    const Json& weights = fields.get("weights");
    Fields(weights, where + ": 'weights'");
    std::vector<std::pair<std::string, double>> coefficients;
    for (const auto& [subnetwork, value] : weights.items()) {
      coefficients.emplace_back(subnetwork, fields.as_number(value, subnetwork));
    }
    fields.finish();
    return merge::weighted(std::move(coefficients));
  }
  if (name == "function") {
    const std::string function = fields.string("name");
    fields.finish();
    const auto found = rules.find(function);
    return found == rules.end() ? merge::missing_function(function) : found->second;
  }
  fields.finish();
  if (name == "sum") return merge::sum();
  if (name == "mean") return merge::mean();
  if (name == "two_smallest_mean") return merge::two_smallest_mean();
  if (name == "owner") return merge::owner();
  TORCH_CHECK_VALUE(false, "nsn::Description: ", where, ": unknown merge rule '", name,
                    "'. Use one of sum, mean, two_smallest_mean, owner, weighted, function.");
}

Json write_rule(const merge::Rule& rule) {
  if (!rule.is_linear()) return {{"rule", "function"}, {"name", rule.name()}};
  Json json{{"rule", rule.name()}};
  for (const auto& [name, coefficient] : rule.weights()) json["weights"][name] = coefficient;
  return json;
}

BlockPtr read_dense(Fields& fields) {
  DenseOptions options(fields.integer("in_features"), fields.integer("out_features"));
  if (fields.has("bias")) options.bias(fields.boolean("bias"));
  if (fields.has("activation")) {
    options.activation(activation_from_string(fields.string("activation")));
  }
  if (fields.has("dropout")) options.dropout(fields.number("dropout"));
  if (fields.has("weight_init")) {
    options.weight_init(weight_init_from_string(fields.string("weight_init")));
  }
  if (fields.has("bias_init")) options.bias_init(fields.number("bias_init"));
  return options;
}

void read_block(const Json& json, const std::map<std::string, merge::Rule>& rules,
                NetworkOptions& options) {
  Fields fields(json, "a block");
  const std::string name = fields.string("name");
  Fields named(json, "block '" + name + "'");
  named.string("name");
  const std::string type = named.string("type");
  std::optional<merge::Rule> rule;
  if (const Json* own = named.find("merge")) {
    rule = read_rule(*own, named.where() + ": 'merge'", rules);
  }
  TORCH_CHECK_VALUE(type == "Dense", "nsn::Description: ", named.where(), " has an unknown type '",
                    type, "'. The types are 'Dense'.");
  BlockPtr block = read_dense(named);
  named.finish();
  options.block(name, std::move(block), std::move(rule));
}

void read_subnetwork(const Json& json, NetworkOptions& options) {
  const std::string name = Fields(json, "a sub-network").string("name");
  Fields fields(json, "sub-network '" + name + "'");
  fields.string("name");
  std::vector<std::string> blocks;
  for (const Json& block : fields.as_array(fields.get("blocks"), "blocks")) {
    blocks.push_back(fields.as_string(block, "blocks"));
  }
  SubnetworkOptions subnetwork(std::move(blocks));
  if (const Json* dropout = fields.find("dropout")) {
    Fields(*dropout, fields.where() + ": 'dropout'");
    for (const auto& [block, probability] : dropout->items()) {
      subnetwork.dropout(block, fields.as_number(probability, block));
    }
  }
  fields.finish();
  options.subnetwork(name, std::move(subnetwork));
}

}  // namespace

Description Description::from_json(const std::string& text,
                                   const std::map<std::string, merge::Rule>& rules) {
  std::string problem;
  const Json json = detail::parse_json(text, kMostDepth, problem);
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
  at::ScalarType dtype = at::kFloat;
  if (input.has("dtype")) {
    const std::string name = input.string("dtype");
    const auto found = std::find_if(dtypes().begin(), dtypes().end(),
                                    [&](const auto& each) { return each.first == name; });
    TORCH_CHECK_VALUE(found != dtypes().end(), "nsn::Description: 'input': unknown dtype '", name,
                      "'. Use float32, float64, float16, bfloat16, or an integral one such as "
                      "int64.");
    dtype = found->second;
  }
  input.finish();
  options.input(std::move(shape), dtype);

  for (const Json& block : document.as_array(document.get("blocks"), "blocks")) {
    read_block(block, rules, options);
  }
  if (const Json* subnetworks = document.find("subnetworks")) {
    for (const Json& subnetwork : document.as_array(*subnetworks, "subnetworks")) {
      read_subnetwork(subnetwork, options);
    }
  }
  if (const Json* rule = document.find("merge")) options.merge(read_rule(*rule, "'merge'", rules));
  document.finish();
  return Description(options);
}

std::string Description::to_json(int indent) const {
  Json json;
  json["nsn"] = kSchemaVersion;
  const auto dtype = std::find_if(dtypes().begin(), dtypes().end(),
                                  [&](const auto& each) { return each.second == dtype_; });
  TORCH_CHECK_VALUE(dtype != dtypes().end(), "nsn::Description: input dtype ", dtype_,
                    " has no name in the schema. Use float32.");
  json["input"] = {{"shape", input_}, {"dtype", dtype->first}};
  json["blocks"] = Json::array();
  for (const NamedBlock& block : blocks_) {
    Json each{{"name", block.name}, {"type", block.block->type()}};
    each.update(Json::parse(block.block->options_json()));
    if (block.overrides_rule) each["merge"] = write_rule(block.rule);
    json["blocks"].push_back(std::move(each));
  }
  json["subnetworks"] = Json::array();
  for (const Subnetwork& subnetwork : subnetworks_) {
    Json each{{"name", subnetwork.name}, {"blocks", Json::array()}};
    for (const size_t i : c10::irange(subnetwork.blocks.size())) {
      const std::string& name = blocks_[subnetwork.blocks[i]].name;
      each["blocks"].push_back(name);
      if (subnetwork.uses[i].dropout) each["dropout"][name] = *subnetwork.uses[i].dropout;
    }
    json["subnetworks"].push_back(std::move(each));
  }
  json["merge"] = write_rule(merge_);
  try {
    return json.dump(indent);
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false, "nsn::Description: names must be UTF-8: ", error.what(),
                      ". Rename the merge rule.");
  }
}

}  // namespace nsn
