#include "blocks/options.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <type_traits>

#include "blocks/reading.h"
#include "values/fields.h"
#include "values/json.h"

namespace nsn::detail {

namespace {

// -------------------------------------------------------------------------------------------------
// Values as JSON

Json to_json(bool value) { return value; }
Json to_json(int64_t value) { return value; }
Json to_json(double value) { return value; }
Json to_json(const std::string& value) { return value; }
Json to_json(const Activation& value) { return to_string(value); }
Json to_json(WeightInit value) { return to_string(value); }
Json to_json(const Parts& value) { return value; }
template <typename T>
Json to_json(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}
template <size_t D>
Json to_json(const torch::ExpandingArray<D>& value) {
  const auto& extents = *value;
  const bool one =
      std::all_of(extents.begin(), extents.end(), [&](int64_t each) { return each == extents[0]; });
  if (one) return extents[0];
  return Json(std::vector<int64_t>(extents.begin(), extents.end()));
}
Json to_json(const std::vector<InnerBlock>& value) {
  Json result = Json::array();
  for (const InnerBlock& inner : value) {
    result.push_back(write_block(inner.name, *inner.block));
    if (!inner.takes_dropout) result.back()["takes_dropout"] = false;
  }
  return result;
}

/// null where the option stands for "none".
Json as_json(const OptionValue& value) {
  return std::visit([](const auto* each) { return to_json(*each); }, value);
}

std::string plain(const Json& json) {
  return json.is_string() ? json.get<std::string>() : json.dump();
}

struct Reader {
  Fields& fields;
  const Supplied& supplied;
  const std::string name;

  void operator()(bool* value) const { *value = fields.boolean(name); }
  void operator()(int64_t* value) const { *value = fields.option(name); }
  void operator()(double* value) const { *value = fields.number(name); }
  void operator()(std::string* value) const { *value = fields.string(name); }
  void operator()(Activation* value) const { *value = activation_from_string(fields.string(name)); }
  void operator()(WeightInit* value) const {
    *value = weight_init_from_string(fields.string(name));
  }
  void operator()(Parts* value) const {
    value->clear();
    for (const Json& part : fields.as_array(fields.get(name), name)) {
      value->insert(fields.as_string(part, name));
    }
  }
  void operator()(std::optional<double>* value) const { *value = fields.number(name); }
  void operator()(std::optional<int64_t>* value) const { *value = fields.option(name); }
  template <size_t D>
  void operator()(torch::ExpandingArray<D>* value) const {
    const Json& json = fields.get(name);
    if (!json.is_array()) {
      *value = torch::ExpandingArray<D>(fields.as_option(json, name));
      return;
    }
    TORCH_CHECK_VALUE(json.size() == D, "nsn::Description: ", fields.where(), ": '", name,
                      "' must be an integer or ", D, " of them, but has ", json.size(), ".");
    for (size_t i = 0; i < D; ++i) (**value)[i] = fields.as_option(json[i], name);
  }
  void operator()(std::vector<InnerBlock>* value) const {
    value->clear();
    for (const Json& inner : fields.as_array(fields.get(name), name)) {
      Fields own(inner, "a block in " + fields.where());
      const std::string own_name = own.string("name");
      if (!own.has("takes_dropout")) {
        value->push_back({own_name, read_block(inner, supplied)});
        continue;
      }
      // A field of its place, which the block itself does not know.
      const bool takes_dropout = own.boolean("takes_dropout");
      Json block = inner;
      block.erase("takes_dropout");
      value->push_back({own_name, read_block(block, supplied), takes_dropout});
    }
  }
};

struct Kind {
  std::string operator()(const bool*) const { return "bool"; }
  std::string operator()(const int64_t*) const { return "int"; }
  std::string operator()(const double*) const { return "float"; }
  std::string operator()(const std::string*) const { return "str"; }
  std::string operator()(const Activation*) const { return "activation"; }
  std::string operator()(const WeightInit*) const { return "weight_init"; }
  std::string operator()(const Parts*) const { return "parts"; }
  std::string operator()(const std::optional<double>*) const { return "float?"; }
  std::string operator()(const std::optional<int64_t>*) const { return "int?"; }
  std::string operator()(const torch::ExpandingArray<1>*) const { return "extents1"; }
  std::string operator()(const torch::ExpandingArray<2>*) const { return "extents2"; }
  std::string operator()(const std::vector<InnerBlock>*) const { return "blocks"; }
};

// -------------------------------------------------------------------------------------------------
// Checks

/// The names that there are, or those that are allowed; each in quotes.
std::string listed(const Check& check, bool allowed_alone, const char* separator) {
  std::string result;
  for (const auto& [name, is_allowed] : check.names) {
    if (allowed_alone && !is_allowed) continue;
    result += (result.empty() ? "'" : separator + std::string("'")) + name + "'";
  }
  return result;
}

bool allows(const Check& check, const std::string& name) {
  return std::any_of(check.names.begin(), check.names.end(),
                     [&](const auto& each) { return each.second && each.first == name; });
}

struct Checker {
  const std::string& type;
  const Option& option;

  void operator()(const int64_t* value) const { number(*value); }
  void operator()(const double* value) const { number(*value); }
  template <typename T>
  void operator()(const std::optional<T>* value) const {
    if (*value) number(**value);
  }
  template <size_t D>
  void operator()(const torch::ExpandingArray<D>* value) const {
    for (const int64_t extent : **value) number(extent);
  }
  void operator()(const std::string* value) const {
    if (!option.check.names.empty() && !allows(option.check, *value)) fail("'" + *value + "'");
  }
  void operator()(const Activation* value) const {
    TORCH_CHECK_VALUE(option.check.may_be_gated || !is_gated(*value), "nsn::", type, ": ",
                      option.name, " must not be gated, but is ", to_string(*value),
                      ". Use a gated activation in Dense or a convolution.");
  }
  void operator()(const Parts* value) const {
    for (const std::string& part : *value) {
      if (allows(option.check, part)) continue;
      const std::string known = listed(option.check, /*allowed_alone=*/true, ", ");
      TORCH_CHECK_VALUE(false, "nsn::", type, ": ", option.name, " names '", part,
                        "', which the block does not have. It can have ",
                        known.empty() ? "no private parts" : known, ".");
    }
  }
  // Of its kind is enough.
  void operator()(const bool* /*value*/) const {}
  void operator()(const WeightInit* /*value*/) const {}
  void operator()(const std::vector<InnerBlock>* /*value*/) const {}

 private:
  template <typename T>
  void number(T value) const {
    const auto real = static_cast<double>(value);
    if (option.check.rule.empty() || (real >= option.check.least && real <= option.check.most)) {
      return;
    }
    fail(c10::str(value));
  }
  [[noreturn]] void fail(const std::string& found) const {
    const std::string doc = option.doc;
    TORCH_CHECK_VALUE(false, "nsn::", type, ": ", option.name, " must be ", option.check.rule,
                      ", but got ", found, ". Give ", doc.substr(0, doc.find(';')), ".");
  }
};

}  // namespace

Check at_least(int64_t least) {
  Check result{"at least " + std::to_string(least)};
  result.least = static_cast<double>(least);
  return result;
}

Check between(double least, double most) {
  return {c10::str("from ", least, " to ", most), least, most};
}

Check probability() { return {"a probability from 0 to 1", 0, 1}; }

Check finite() {
  constexpr double kMost = std::numeric_limits<double>::max();
  return {"finite", -kMost, kMost};
}

Check one_of(std::initializer_list<const char*> names) {
  Check result;
  for (const char* name : names) result.names.emplace_back(name, true);
  result.rule = listed(result, /*allowed_alone=*/false, " or ");
  return result;
}

Check not_gated() {
  Check result{"not gated"};
  result.may_be_gated = false;
  return result;
}

Check parts(std::initializer_list<std::pair<const char*, bool>> names) {
  Check result;
  result.names = names;
  result.rule = "of " + listed(result, /*allowed_alone=*/false, ", ");
  return result;
}

struct OptionsWriter::Document {
  Json json;
};

OptionsWriter::OptionsWriter() : document_(std::make_unique<Document>()) {}
OptionsWriter::~OptionsWriter() = default;

void OptionsWriter::visit(const Option& option) {
  const Json json = as_json(option.value);
  if (!json.is_null()) document_->json[option.name] = json;
}

std::string OptionsWriter::text() const {
  return document_->json.is_null() ? "{}" : document_->json.dump();
}

void OptionsPrinter::visit(const Option& option) {
  const auto separator = [&] { return std::exchange(first_, false) ? "" : ", "; };
  if (const auto* blocks = std::get_if<std::vector<InnerBlock>*>(&option.value)) {
    for (const InnerBlock& inner : **blocks) {
      stream_ << separator() << inner.name << ": " << inner.block->type() << '(';
      inner.block->pretty_print(stream_);
      stream_ << ')';
    }
    return;
  }
  const Json json = as_json(option.value);
  if (!option.standard) {
    stream_ << separator() << plain(json);
  } else if (!json.is_null() && json != as_json(*option.standard)) {
    stream_ << separator() << option.name << '=' << plain(json);
  }
}

void OptionsReader::visit(const Option& option) {
  if (!option.standard) fields_.get(option.name);
  if (!option.standard || fields_.has(option.name)) {
    std::visit(Reader{fields_, supplied_, option.name}, option.value);
  }
}

void OptionsChecker::visit(const Option& option) {
  std::visit(Checker{type_, option}, option.value);
}

void OptionsCollector::visit(const Option& option) {
  OptionFacts facts{option.name, std::visit(Kind(), option.value), std::nullopt, option.doc,
                    option.check.rule};
  if (option.standard) facts.standard = as_json(*option.standard).dump();
  options.push_back(std::move(facts));
}

}  // namespace nsn::detail
