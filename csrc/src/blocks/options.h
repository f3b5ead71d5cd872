#pragma once

#include <c10/util/Exception.h>
#include <torch/expanding_array.h>

#include <algorithm>
#include <optional>
#include <ostream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "blocks/reading.h"
#include "fields.h"
#include "nsn/blocks/activation.h"
#include "nsn/blocks/parts.h"

// A block's options, listed once: each block's `visit(options, defaults, visitor)` names them, and
// reading, writing and printing follow. Required ones come first, as in the constructor.

namespace nsn::detail {

// -------------------------------------------------------------------------------------------------
// Values as JSON

inline Json to_json(bool value) { return value; }
inline Json to_json(int64_t value) { return value; }
inline Json to_json(double value) { return value; }
inline Json to_json(const std::string& value) { return value; }
inline Json to_json(const Activation& value) { return to_string(value); }
inline Json to_json(WeightInit value) { return to_string(value); }
inline Json to_json(const Parts& value) { return value; }
inline Json to_json(const std::optional<double>& value) { return *value; }
inline Json to_json(const std::optional<int64_t>& value) { return *value; }
template <size_t D>
Json to_json(const torch::ExpandingArray<D>& value) {
  const auto& extents = *value;
  const bool one =
      std::all_of(extents.begin(), extents.end(), [&](int64_t each) { return each == extents[0]; });
  if (one) return extents[0];
  return Json(std::vector<int64_t>(extents.begin(), extents.end()));
}
inline Json to_json(const std::vector<InnerBlock>& value) {
  Json result = Json::array();
  for (const InnerBlock& inner : value) {
    result.push_back(write_block(inner.name, *inner.block));
    if (!inner.takes_dropout) result.back()["takes_dropout"] = false;
  }
  return result;
}

/// Whether an option is left out of the document: it stands for "none".
template <typename T>
bool is_none(const T& value) {
  static_cast<void>(value);
  return false;
}
template <typename T>
bool is_none(const std::optional<T>& value) {
  return !value.has_value();
}

inline void read(Fields& fields, const std::string& name, const Supplied&, bool& value) {
  value = fields.boolean(name);
}
inline void read(Fields& fields, const std::string& name, const Supplied&, int64_t& value) {
  value = fields.option(name);
}
inline void read(Fields& fields, const std::string& name, const Supplied&, double& value) {
  value = fields.number(name);
}
inline void read(Fields& fields, const std::string& name, const Supplied&, std::string& value) {
  value = fields.string(name);
}
inline void read(Fields& fields, const std::string& name, const Supplied&, Activation& value) {
  value = activation_from_string(fields.string(name));
}
inline void read(Fields& fields, const std::string& name, const Supplied&, WeightInit& value) {
  value = weight_init_from_string(fields.string(name));
}
inline void read(Fields& fields, const std::string& name, const Supplied&, Parts& value) {
  value.clear();
  for (const Json& part : fields.as_array(fields.get(name), name)) {
    value.insert(fields.as_string(part, name));
  }
}
inline void read(Fields& fields, const std::string& name, const Supplied&,
                 std::optional<double>& value) {
  value = fields.number(name);
}
inline void read(Fields& fields, const std::string& name, const Supplied&,
                 std::optional<int64_t>& value) {
  value = fields.option(name);
}
template <size_t D>
void read(Fields& fields, const std::string& name, const Supplied&,
          torch::ExpandingArray<D>& value) {
  const Json& json = fields.get(name);
  if (!json.is_array()) {
    value = torch::ExpandingArray<D>(fields.as_option(json, name));
    return;
  }
  TORCH_CHECK_VALUE(json.size() == D, "nsn::Description: ", fields.where(), ": '", name,
                    "' must be an integer or ", D, " of them, but has ", json.size(), ".");
  for (size_t i = 0; i < D; ++i) (*value)[i] = fields.as_option(json[i], name);
}
inline void read(Fields& fields, const std::string& name, const Supplied& supplied,
                 std::vector<InnerBlock>& value) {
  value.clear();
  for (const Json& inner : fields.as_array(fields.get(name), name)) {
    Fields own(inner, "a block in " + fields.where());
    const std::string own_name = own.string("name");
    if (!own.has("takes_dropout")) {
      value.push_back({own_name, read_block(inner, supplied)});
      continue;
    }
    // A field of its place, which the block itself does not know.
    const bool takes_dropout = own.boolean("takes_dropout");
    Json block = inner;
    block.erase("takes_dropout");
    value.push_back({own_name, read_block(block, supplied), takes_dropout});
  }
}

// -------------------------------------------------------------------------------------------------
// Visitors

class OptionsReader {
 public:
  OptionsReader(Fields& fields, const Supplied& supplied) : fields_(fields), supplied_(supplied) {}

  template <typename T>
  void required(const char* name, T& value) {
    fields_.get(name);
    read(fields_, name, supplied_, value);
  }
  template <typename T>
  void optional(const char* name, T& value, const T& standard) {
    static_cast<void>(standard);
    if (fields_.has(name)) read(fields_, name, supplied_, value);
  }

 private:
  Fields& fields_;
  const Supplied& supplied_;
};

class OptionsWriter {
 public:
  template <typename T>
  void required(const char* name, const T& value) {
    json_[name] = to_json(value);
  }
  template <typename T>
  void optional(const char* name, const T& value, const T& standard) {
    static_cast<void>(standard);
    if (!is_none(value)) json_[name] = to_json(value);
  }
  std::string text() const { return json_.is_null() ? "{}" : json_.dump(); }

 private:
  Json json_;
};

/// "784, 10, bias=false".
class OptionsPrinter {
 public:
  explicit OptionsPrinter(std::ostream& stream) : stream_(stream) {}

  template <typename T>
  void required(const char* name, const T& value) {
    static_cast<void>(name);
    stream_ << separator() << plain(to_json(value));
  }
  void required(const char* name, const std::vector<InnerBlock>& value) {
    static_cast<void>(name);
    for (const InnerBlock& inner : value) {
      stream_ << separator() << inner.name << ": " << inner.block->type() << '(';
      inner.block->pretty_print(stream_);
      stream_ << ')';
    }
  }
  template <typename T>
  void optional(const char* name, const T& value, const T& standard) {
    if (is_none(value) || (!is_none(standard) && to_json(value) == to_json(standard))) return;
    stream_ << separator() << name << '=' << plain(to_json(value));
  }

 private:
  const char* separator() { return std::exchange(first_, false) ? "" : ", "; }
  static std::string plain(const Json& json) {
    return json.is_string() ? json.get<std::string>() : json.dump();
  }

  std::ostream& stream_;
  bool first_ = true;
};

template <typename Options>
std::string write_options(const Options& options, const Options& defaults) {
  OptionsWriter writer;
  visit(options, defaults, writer);
  return writer.text();
}

template <typename Options>
void print_options(std::ostream& stream, const Options& options, const Options& defaults) {
  OptionsPrinter printer(stream);
  visit(options, defaults, printer);
}

/// Reads `options`, which holds the defaults.
template <typename Options>
BlockPtr read_options(Fields& fields, const Supplied& supplied, Options options) {
  OptionsReader reader(fields, supplied);
  const Options defaults = options;
  visit(options, defaults, reader);
  return options;
}

}  // namespace nsn::detail
