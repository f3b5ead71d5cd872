#pragma once

#include <torch/expanding_array.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "nsn/blocks/block.h"
#include "nsn/blocks/parts.h"
#include "nsn/blocks/supplied.h"
#include "nsn/blocks/weight_init.h"
#include "nsn/functional/activation.h"

// A block's options, listed once. Each block has one `list_options(options, defaults, visitor)`,
// which names each option with its value and its default; reading, writing and printing follow, and
// tests hold Python's dataclasses and the documents against the list. Required ones come first, as
// in the constructor.

namespace nsn::detail {

class Fields;

/// An option's value, of one of the kinds that there are.
using OptionValue =
    std::variant<bool*, int64_t*, double*, std::string*, Activation*, WeightInit*, Parts*,
                 std::optional<double>*, std::optional<int64_t>*, torch::ExpandingArray<1>*,
                 torch::ExpandingArray<2>*, std::vector<InnerBlock>*>;

/// What is done with each option of a list.
class OptionVisitor {
 public:
  virtual ~OptionVisitor() = default;

  /// Must be given.
  template <typename T>
  void required(const char* name, const T& value) {
    visit(name, pointer(value), std::nullopt);
  }
  /// May be left out.
  template <typename T>
  void optional(const char* name, const T& value, const T& standard) {
    visit(name, pointer(value), pointer(standard));
  }

 protected:
  /// `standard` is none for a required one. Only readers write.
  virtual void visit(const char* name, OptionValue value, std::optional<OptionValue> standard) = 0;

 private:
  // One list serves readers and writers, so that it is written for const options.
  template <typename T>
  static OptionValue pointer(const T& value) {
    return const_cast<T*>(&value);  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  }
};

/// {"in_features": 784, ...}: what stands for "none" is left out.
class OptionsWriter final : public OptionVisitor {
 public:
  OptionsWriter();
  ~OptionsWriter() override;
  OptionsWriter(const OptionsWriter&) = delete;
  OptionsWriter& operator=(const OptionsWriter&) = delete;
  std::string text() const;

 private:
  void visit(const char* name, OptionValue value, std::optional<OptionValue> standard) override;
  struct Document;
  std::unique_ptr<Document> document_;
};

/// "784, 10, bias=false".
class OptionsPrinter final : public OptionVisitor {
 public:
  explicit OptionsPrinter(std::ostream& stream) : stream_(stream) {}

 private:
  void visit(const char* name, OptionValue value, std::optional<OptionValue> standard) override;
  std::ostream& stream_;
  bool first_ = true;
};

/// Sets options from a block's JSON.
class OptionsReader final : public OptionVisitor {
 public:
  OptionsReader(Fields& fields, const Supplied& supplied) : fields_(fields), supplied_(supplied) {}

 private:
  void visit(const char* name, OptionValue value, std::optional<OptionValue> standard) override;
  Fields& fields_;
  const Supplied& supplied_;
};

/// One option of a type of block, for those who have no options at hand.
struct OptionFacts {
  std::string name;
  /// "bool", "int", "float", "str", "activation", "weight_init", "parts", "extents1", "extents2",
  /// "blocks"; with a '?' behind it where it may be none.
  std::string kind;
  /// As JSON; none for a required one, "null" for none.
  std::optional<std::string> standard;
};

/// A type of built-in blocks.
struct BlockType {
  std::string name;
  std::function<BlockPtr(Fields& fields, const Supplied& supplied)> read;
  std::vector<OptionFacts> options;
};

/// Collects what a list says.
class OptionsCollector final : public OptionVisitor {
 public:
  std::vector<OptionFacts> options;

 private:
  void visit(const char* name, OptionValue value, std::optional<OptionValue> standard) override;
};

template <typename Options>
std::string write_options(const Options& options, const Options& defaults) {
  OptionsWriter writer;
  list_options(options, defaults, writer);
  return writer.text();
}

template <typename Options>
void print_options(std::ostream& stream, const Options& options, const Options& defaults) {
  OptionsPrinter printer(stream);
  list_options(options, defaults, printer);
}

/// Reads `options`, which holds the defaults.
template <typename Options>
BlockPtr read_options(Fields& fields, const Supplied& supplied, Options options) {
  OptionsReader reader(fields, supplied);
  const Options defaults = options;
  list_options(options, defaults, reader);
  return options;
}

template <typename Options>
BlockType block_type(const char* name, const Options& defaults) {
  OptionsCollector collector;
  list_options(defaults, defaults, collector);
  return {name,
          [defaults](Fields& fields, const Supplied& supplied) {
            return read_options(fields, supplied, defaults);
          },
          std::move(collector.options)};
}

}  // namespace nsn::detail
