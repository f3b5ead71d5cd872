#pragma once

#include <c10/core/ScalarType.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nsn/block.h>
#include <nsn/merge.h>

namespace nsn {

/// Options for a sub-network: the blocks that it keeps, in order.
///
///     SubnetworkOptions({"hidden2", "output"}).dropout("hidden2", 0.2)
class NSN_API SubnetworkOptions {
 public:
  SubnetworkOptions(std::vector<std::string> blocks)  // NOLINT(google-explicit-constructor)
      : blocks_(std::move(blocks)) {}

  /// This sub-network's dropout probability in `block`, in place of the block's own.
  SubnetworkOptions& dropout(std::string block, double probability) {
    dropout_.emplace_back(std::move(block), probability);
    return *this;
  }

  const std::vector<std::string>& blocks() const noexcept { return blocks_; }
  const std::vector<std::pair<std::string, double>>& dropout() const noexcept { return dropout_; }

 private:
  std::vector<std::string> blocks_;
  std::vector<std::pair<std::string, double>> dropout_;
};

/// What a network is to be; nothing is checked before a Description is made of it.
class NSN_API NetworkOptions {
 public:
  /// The shape of one sample, without the batch dimension, and its dtype. Parameters have that
  /// dtype too if it is a floating one, else float32.
  NetworkOptions& input(Shape shape, at::ScalarType dtype = at::kFloat);

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
    /// The place of the block's first parameter among those of all blocks.
    size_t first_parameter;
  };
  struct Subnetwork {
    std::string name;
    /// Places of the blocks kept, in order, and how each is kept.
    std::vector<size_t> blocks;
    std::vector<BlockUse> uses;
    /// The shape of one sample of the output.
    Shape output;
    /// How many parameters it uses, and its place by that number: 0 is the smallest.
    int64_t parameter_count;
    int64_t rank;
  };

  /// Throws c10::ValueError naming the block or sub-network, what was found, and the remedy.
  Description(const NetworkOptions& options);  // NOLINT(google-explicit-constructor)

  /// From JSON. `rules` supplies function rules by name, since a file cannot hold them; one that is
  /// missing is an error only when a joint pass needs it. Throws c10::ValueError as above, and for
  /// text that is no such document.
  static Description from_json(const std::string& text,
                               const std::map<std::string, merge::Rule>& rules = {});

  /// One document in the schema's newest version; `indent` as spaces, or -1 for a single line.
  std::string to_json(int indent = -1) const;

  const Shape& input() const noexcept { return input_; }
  at::ScalarType dtype() const noexcept { return dtype_; }
  /// The dtype that parameters start with.
  at::ScalarType parameter_dtype() const noexcept;
  const std::vector<NamedBlock>& blocks() const noexcept { return blocks_; }
  /// "base" first, then in the order of declaration.
  const std::vector<Subnetwork>& subnetworks() const noexcept { return subnetworks_; }
  const merge::Rule& merge() const noexcept { return merge_; }

  /// The names of the sub-networks, in order.
  std::vector<std::string> names() const;

  /// The place of a sub-network; throws c10::ValueError that lists the names.
  size_t index_of(const std::string& subnetwork) const;
  const Subnetwork& subnetwork(const std::string& name) const;

  /// The number of all blocks' parameter tensors, and of their elements.
  size_t parameter_tensors() const noexcept;
  int64_t parameter_count() const noexcept;

  /// "hidden1.weight", ... for all parameters, in order.
  std::vector<std::string> parameter_names() const;

  friend bool operator==(const Description& a, const Description& b) {
    return a.to_json() == b.to_json();
  }

 private:
  void add_blocks(const NetworkOptions& options);
  void add_subnetwork(const std::string& name, const SubnetworkOptions& options);
  void check_rules() const;
  void rank_subnetworks();

  Shape input_;
  at::ScalarType dtype_;
  std::vector<NamedBlock> blocks_;
  std::vector<Subnetwork> subnetworks_;
  merge::Rule merge_;
};

}  // namespace nsn
