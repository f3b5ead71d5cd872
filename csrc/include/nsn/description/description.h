#pragma once

#include <c10/core/ScalarType.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/blocks/supplied.h>
#include <nsn/values/merge.h>

namespace nsn {

/// How much of a dimension a sub-network keeps: a count, or a fraction of what there is, which
/// means the nearest count (halves upwards), at least one step.
class NSN_API Width {
 public:
  Width(int count) : value_(int64_t{count}) {}  // NOLINT(google-explicit-constructor)
  Width(int64_t count) : value_(count) {}       // NOLINT(google-explicit-constructor)
  Width(double fraction) : value_(fraction) {}  // NOLINT(google-explicit-constructor)

  const std::variant<int64_t, double>& value() const noexcept { return value_; }

  /// The count that it means; throws c10::ValueError, naming `what`, where it does not fit.
  int64_t of(const Dimension& dimension, const std::string& what) const;

 private:
  std::variant<int64_t, double> value_;
};

/// Options for a sub-network: the blocks that it keeps, in order, and how it keeps them.
///
///     SubnetworkOptions({"hidden1", "hidden2", "output"})
///         .width("hidden1", 0.5)
///         .dropout("hidden2", 0.2)
///
/// or, of all blocks and as narrow as they can be kept:
///
///     SubnetworkOptions().width(0.5)
class NSN_API SubnetworkOptions {
 public:
  /// In the place of a block's name: all blocks.
  static constexpr const char* kAll = "*";

  /// Keeps all blocks of the network.
  SubnetworkOptions() : keeps_all_(true) {}
  SubnetworkOptions(std::vector<std::string> blocks)  // NOLINT(google-explicit-constructor)
      : blocks_(std::move(blocks)) {}

  /// This sub-network's dropout probability in `block`, in place of the block's own.
  SubnetworkOptions& dropout(std::string block, double probability) {
    dropout_.emplace_back(std::move(block), probability);
    return *this;
  }

  /// How much it keeps of all dimensions of its blocks that have no width of their own: a fraction.
  /// What cannot be narrowed stays whole, and so does what the shape of its output depends on.
  SubnetworkOptions& width(Width fraction) { return width(kAll, fraction); }

  /// How much it keeps of the one dimension that `block` has, or of one of several. Where that
  /// would change the shape of its output, the dimension must be named.
  SubnetworkOptions& width(std::string block, Width width) {
    return this->width(std::move(block), "", width);
  }
  SubnetworkOptions& width(std::string block, std::string dimension, Width width) {
    widths_.push_back({std::move(block), std::move(dimension), width});
    return *this;
  }

  struct BlockWidth {
    std::string block, dimension;  // no dimension: the only one; an inner block: its only one
    Width width;
  };
  /// Those that were named. A Description names them all where none was.
  const std::vector<std::string>& blocks() const noexcept { return blocks_; }
  const std::vector<std::pair<std::string, double>>& dropout() const noexcept { return dropout_; }
  const std::vector<BlockWidth>& widths() const noexcept { return widths_; }

 private:
  friend class Description;
  bool keeps_all_ = false;
  std::vector<std::string> blocks_;
  std::vector<std::pair<std::string, double>> dropout_;
  std::vector<BlockWidth> widths_;
};

/// What a network is to be; nothing is checked before a Description is made of it.
class NSN_API NetworkOptions {
 public:
  /// The shape of one sample, without the batch dimension, and its dtype. Parameters have that
  /// dtype too if it is a floating one, else float32.
  NetworkOptions& input(Shape shape, at::ScalarType dtype = at::kFloat);

  /// The parameters' dtype, floating. Default: the input's where that is floating, else float32.
  NetworkOptions& dtype(at::ScalarType parameters);

  /// The next block, from input to output. `rule` overrides the network's merge rule in this block.
  NetworkOptions& block(std::string name, BlockPtr block,
                        std::optional<merge::Rule> rule = std::nullopt);

  /// A sub-network. "base" has all blocks unless it is given here too.
  NetworkOptions& subnetwork(std::string name, SubnetworkOptions options);

  /// The merge rule. Default: merge::sum().
  NetworkOptions& merge(merge::Rule rule);

 private:
  friend class Description;
  struct NamedBlock {
    std::string name;
    BlockPtr block;
    std::optional<merge::Rule> rule;
  };
  Shape input_;
  at::ScalarType dtype_ = at::kFloat;
  std::optional<at::ScalarType> parameter_dtype_;
  std::vector<NamedBlock> blocks_;
  std::vector<std::pair<std::string, SubnetworkOptions>> subnetworks_;
  merge::Rule merge_ = merge::sum();
};

/// A network as a value: input, blocks, sub-networks, merge rules; no tensors. It is checked as a
/// whole when it is made, and round-trips through JSON (docs/description.md has the schema).
class NSN_API Description {
 public:
  struct NamedBlock {
    std::string name;
    BlockPtr block;
    std::vector<ParameterSpec> parameters;
    /// The rule in force in this block, and whether it is the block's own.
    merge::Rule rule;
    bool overrides_rule;
  };
  /// A tensor that a network of this description has: a parameter or a buffer.
  struct Parameter {
    /// "hidden1.weight"; "norm1.bias_small" for a private one.
    std::string name;
    /// At the width of its sub-network for a private one.
    Shape shape;
    at::ScalarType dtype;
    bool decays, is_buffer;
    /// Where it comes from: place of the block, of the parameter in it, and for a private one of
    /// the sub-network.
    size_t block, spec;
    std::optional<size_t> subnetwork;
    /// ParameterSpec::counts_batches.
    bool counts_batches = false;

    /// Whether a tensor of that dtype may stand here: parameters and buffers may change between
    /// floating dtypes (Module::to), but counters stay.
    NSN_API bool takes(at::ScalarType other) const;

    /// Throws c10::ValueError, beginning with `function`, where a tensor is undefined or has
    /// another shape or kind of dtype.
    NSN_API void check(const at::Tensor& tensor, const char* function = "nsn::Network") const;
  };
  struct Subnetwork {
    std::string name;
    /// As described.
    SubnetworkOptions options;
    /// Places of the blocks kept, in order, and how each fits.
    std::vector<size_t> blocks;
    std::vector<Fit> fits;
    /// Where it finds the parameters of each of them.
    std::vector<std::vector<ParameterPlace>> places;
    /// What it keeps of parameters that several blocks use: place to slice.
    std::map<size_t, Layout> tied;
    /// The shape of one sample of the output.
    Shape output;
    /// How many parameters it uses, and its place by that number: 0 is the smallest.
    int64_t parameter_count;
    int64_t rank;
    /// Of one sample, as Fit::flops counts.
    int64_t flops;
  };

  /// Throws c10::ValueError naming the block or sub-network, what was found, and the remedy.
  Description(const NetworkOptions& options);  // NOLINT(google-explicit-constructor)

  /// The places of the other sub-networks' private parameters that stand where this one does.
  std::vector<size_t> siblings_of(size_t parameter) const;

  /// From JSON. Throws c10::ValueError as above, and for text that is no such document.
  static Description from_json(const std::string& text, const Supplied& supplied = {});

  /// One document in the schema's newest version; `indent` as spaces, or -1 for a single line.
  std::string to_json(int indent = -1) const;

  const Shape& input() const noexcept { return input_; }
  at::ScalarType dtype() const noexcept { return dtype_; }
  /// The dtype that parameters start with.
  at::ScalarType parameter_dtype() const noexcept { return parameter_dtype_; }

  /// The same network with parameters, and an input that is floating, of another floating dtype.
  Description with_dtype(at::ScalarType dtype) const;

  /// The blocks that compute something else in training: dropout, batch norm, types of one's own.
  std::vector<std::string> blocks_with_modes() const;
  const std::vector<NamedBlock>& blocks() const noexcept { return blocks_; }
  /// "base" first, then in the order of declaration.
  const std::vector<Subnetwork>& subnetworks() const noexcept { return subnetworks_; }
  const merge::Rule& merge() const noexcept { return merge_; }

  /// The names of the sub-networks, in order.
  std::vector<std::string> names() const;

  /// The place of a sub-network; throws c10::ValueError that lists the names.
  size_t index_of(const std::string& subnetwork) const;
  const Subnetwork& subnetwork(const std::string& name) const;

  /// The network of one sub-network by itself: its blocks, as wide as it keeps them, as `base` of a
  /// description without others. A TiedOutput that reads more of its embedding than the input does,
  /// or does without it, becomes a Dense block; wrapped modules are copied. Throws c10::ValueError
  /// where a block cannot be made narrower.
  Description alone(const std::string& subnetwork) const;

  /// The same with other blocks of the same options, where `replace` returns one.
  Description with_blocks(const std::function<BlockPtr(const Block&)>& replace) const;

  /// All tensors, parameters and buffers, in the order of blocks.
  const std::vector<Parameter>& parameters() const noexcept { return parameters_; }
  std::vector<std::string> parameter_names() const;

  /// Throws c10::ValueError, beginning with `function`, unless there is a tensor for each of them.
  void check_count(at::TensorList tensors, const char* function = "nsn::Network") const;

  /// The number of elements of all parameters, buffers apart.
  int64_t parameter_count() const noexcept;

  /// Who uses a parameter of the table, in the order of sub-networks, and which slice of it.
  struct User {
    size_t subnetwork;
    const Layout* slice;
  };
  std::vector<User> users_of(size_t parameter) const;

  friend bool operator==(const Description& a, const Description& b) {
    return a.to_json() == b.to_json();
  }

 private:
  void add_blocks(const NetworkOptions& options);
  void add_parameters();
  void add_uses();
  void add_tied_slices();
  void count_parameters();
  void check_rules() const;
  void rank_subnetworks();

  Shape input_;
  at::ScalarType dtype_;
  at::ScalarType parameter_dtype_;
  std::vector<NamedBlock> blocks_;
  std::vector<Subnetwork> subnetworks_;
  std::vector<Parameter> parameters_;
  /// Who uses each parameter: a sub-network, and its first use: of a block (as it counts them) and
  /// the parameter there.
  struct Use {
    size_t subnetwork, block, spec;
  };
  std::vector<std::vector<Use>> uses_;
  merge::Rule merge_;
};

}  // namespace nsn
