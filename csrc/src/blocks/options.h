#pragma once

#include <torch/expanding_array.h>

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
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
// which names each option with its value, its default, what it is and what it has to be; reading,
// writing, printing and checking follow. `make docs` writes the tables of docs/blocks.md and the
// docstrings of Python's dataclasses from it, and tests hold both against the list. Required ones
// come first, as in the constructor.
//
// What an option is ("doc") is a noun phrase, which a message of a wrong value ends with: "Give the
// last extent of the input." What is to be added stands behind a ';', and last, "; none is X", what
// it means that there is no value. `x` is code, 'x' a string.

namespace nsn::detail {

class Fields;

/// An option's value, of one of the kinds that there are.
using OptionValue =
    std::variant<bool*, int64_t*, double*, std::string*, Activation*, WeightInit*, Parts*,
                 std::optional<double>*, std::optional<int64_t>*, torch::ExpandingArray<1>*,
                 torch::ExpandingArray<2>*, std::vector<InnerBlock>*>;

/// What an option's value has to be, beside being of its kind. Made by the functions below.
struct Check {
  /// "from 0 to 1"; empty where all values are right.
  std::string rule = {};
  /// Of numbers, and of each of several extents.
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  /// Of strings and parts: those that there are, and whether these options allow them.
  std::vector<std::pair<const char*, bool>> names = {};
  /// Of activations.
  bool may_be_gated = true;
};

Check at_least(int64_t least);
/// Both are allowed.
Check between(double least, double most);
Check probability();
Check finite();
Check one_of(std::initializer_list<const char*> names);
Check not_gated();
/// Private parts that a block of these options has, or not.
Check parts(std::initializer_list<std::pair<const char*, bool>> names);

/// One option of a list.
struct Option {
  const char* name;
  OptionValue value;
  /// None for a required one.
  std::optional<OptionValue> standard;
  const char* doc;
  const Check& check;
};

/// What is done with each option of a list.
class OptionVisitor {
 public:
  virtual ~OptionVisitor() = default;

  /// Must be given.
  template <typename T>
  void required(const char* name, const T& value, const char* doc, const Check& check = {}) {
    visit({name, pointer(value), std::nullopt, doc, check});
  }
  /// May be left out.
  template <typename T>
  void optional(const char* name, const T& value, const T& standard, const char* doc,
                const Check& check = {}) {
    visit({name, pointer(value), pointer(standard), doc, check});
  }

 protected:
  /// Only readers write.
  virtual void visit(const Option& option) = 0;

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
  void visit(const Option& option) override;
  struct Document;
  std::unique_ptr<Document> document_;
};

/// "784, 10, bias=false".
class OptionsPrinter final : public OptionVisitor {
 public:
  explicit OptionsPrinter(std::ostream& stream) : stream_(stream) {}

 private:
  void visit(const Option& option) override;
  std::ostream& stream_;
  bool first_ = true;
};

/// Throws c10::ValueError where a value is not what it has to be.
class OptionsChecker final : public OptionVisitor {
 public:
  explicit OptionsChecker(std::string type) : type_(std::move(type)) {}

 private:
  void visit(const Option& option) override;
  std::string type_;
};

/// Sets options from a block's JSON.
class OptionsReader final : public OptionVisitor {
 public:
  OptionsReader(Fields& fields, const Supplied& supplied) : fields_(fields), supplied_(supplied) {}

 private:
  void visit(const Option& option) override;
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
  std::string doc;
  /// "at least 1", "from 0 to 1", "'layer' or 'rms'", "of 'bias', 'scale'"; empty where there is
  /// none.
  std::string check;
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
  void visit(const Option& option) override;
};

// What several blocks say of an option.
namespace doc {
constexpr const char* kAffine = "whether to multiply with a weight and add a bias";
constexpr const char* kBlocks = "the blocks inside, from input to output";
constexpr const char* kBias = "whether to add a bias";
constexpr const char* kDropout =
    "the probability that an element of the output is dropped in training";
constexpr const char* kEps = "the addend to the variance";
constexpr const char* kFeatures = "the last extent of the input";
constexpr const char* kInChannels = "the number of channels of the input";
constexpr const char* kKernelSize = "the extent of the kernel";
constexpr const char* kPadding = "the number of positions to add at each end";
constexpr const char* kPerSubnetwork = "the parts that each sub-network owns by itself";
}  // namespace doc

/// What Dense and convolutions have in common.
template <typename Options>
void list_layer(const Options& options, const Options& defaults, OptionVisitor& visitor) {
  visitor.optional("bias", options.bias(), defaults.bias(), doc::kBias);
  visitor.optional("scale", options.scale(), defaults.scale(),
                   "whether to multiply each output feature with a parameter, which starts at 1");
  visitor.optional("activation", options.activation(), defaults.activation(),
                   "the activation; may be gated");
  visitor.optional("dropout", options.dropout(), defaults.dropout(), doc::kDropout, probability());
  visitor.optional("weight_init", options.weight_init(), defaults.weight_init(),
                   "how the weight starts: 'kaiming_uniform', as `torch.nn.Linear`'s, or "
                   "'xavier_uniform'");
  visitor.optional("bias_init", options.bias_init(), defaults.bias_init(),
                   "the value that all biases start with; none is as `torch.nn.Linear`'s",
                   finite());
  visitor.optional("per_subnetwork", options.per_subnetwork(), defaults.per_subnetwork(),
                   doc::kPerSubnetwork,
                   parts({{"bias", options.bias()}, {"scale", options.scale()}}));
}

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

/// What a block's constructor starts with, so that options are checked whoever makes the block.
template <typename Options>
void check_options(std::string type, const Options& options) {
  OptionsChecker checker(std::move(type));
  list_options(options, options, checker);
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
