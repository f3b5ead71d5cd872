#pragma once

#include <c10/core/ScalarType.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/blocks/supplied.h>
#include <nsn/description/grid.h>
#include <nsn/description/subnetwork.h>
#include <nsn/values/merge.h>

namespace nsn {

namespace detail {
struct BlockLookup;
struct Cells;
}  // namespace detail

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

  /// An axis of the grid: with the others it makes sub-networks that are not listed (Grid).
  NetworkOptions& axis(std::string name, Widths widths);
  NetworkOptions& axis(std::string name, Depths depths);

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
  std::vector<GridAxis> axes_;
  merge::Rule merge_ = merge::sum();
};

/// A network as a value: input, blocks, sub-networks, merge rules; no tensors. It is checked as a
/// whole when it is made, and round-trips through JSON (docs/description.md has the schema).
///
/// Sub-networks have places: those that are listed from 0 on, behind them the cells of the grid. A
/// cell is made where it is asked for, by any thread; those asked for last are kept. Copies share
/// what was made.
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
    /// A parameter's first use: in which of its blocks (as it counts them), as which parameter of
    /// it.
    struct Use {
      size_t block, spec;
      friend bool operator==(const Use&, const Use&) = default;
    };
    /// Of each parameter that it uses, in the order of the table.
    std::map<size_t, Use> uses;
    /// The shape of one sample of the output.
    Shape output;
    /// How many parameters it uses.
    int64_t parameter_count;
    /// Of one sample, as Fit::flops counts.
    int64_t flops;

    /// The slice of a parameter that it uses; null where it uses none.
    NSN_API const Layout* slice_of(size_t parameter) const;

    /// Whether another one keeps the same in the same way, whatever its name.
    NSN_API bool is_same_as(const Subnetwork& other) const;
  };
  using SubnetworkPtr = std::shared_ptr<const Subnetwork>;

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
  /// Those that are listed: "base" first, then in the order of declaration.
  const std::vector<Subnetwork>& subnetworks() const noexcept { return *subnetworks_; }
  /// Those that are not. Without axes there are none.
  const Grid& grid() const noexcept { return grid_; }
  const merge::Rule& merge() const noexcept { return merge_; }

  /// The names of the listed sub-networks, in order.
  std::vector<std::string> names() const;

  /// How many places there are, those of cells included.
  size_t places() const noexcept { return subnetworks_->size() + grid_.size(); }

  /// The place of a sub-network; throws c10::ValueError that lists the names.
  size_t index_of(const std::string& subnetwork) const;
  /// None where there is no such sub-network.
  std::optional<size_t> find(const std::string& subnetwork) const;
  /// Never null. Throws c10::ValueError for a name or place that there is not, and for a cell whose
  /// choices do not fit each other. A cell is forgotten where nobody holds it and others were asked
  /// for since, so hold the pointer while you read what it points to:
  ///
  ///     const auto small = description.subnetwork("w0_d0");
  ///     for (const size_t block : small->blocks) ...
  SubnetworkPtr subnetwork(const std::string& name) const;
  SubnetworkPtr subnetwork(size_t place) const;

  /// The name of the one at a place, of a cell without making it.
  std::string name(size_t place) const;

  /// Whether the one at a place is listed, and no cell of the grid.
  bool is_listed(size_t place) const noexcept { return place < subnetworks_->size(); }

  /// A sub-network as merge rules see it.
  merge::Lane lane(size_t place) const;

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

  /// Who of the listed sub-networks uses a parameter of the table, in order, and which slice of it.
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
  void add_subnetworks(const NetworkOptions& options, const detail::BlockLookup& lookup);
  void add_parameters();
  void settle(Subnetwork& subnetwork) const;
  void add_users();
  void add_grid(std::vector<GridAxis> axes);
  std::vector<Subnetwork> make_choices() const;
  Subnetwork make_cell(size_t cell) const;
  void check_slices(const std::vector<Subnetwork>& choices);
  void check_slices(const Subnetwork& subnetwork) const;
  void check_rules() const;

  Shape input_;
  at::ScalarType dtype_;
  at::ScalarType parameter_dtype_;
  std::vector<NamedBlock> blocks_;
  std::shared_ptr<std::vector<Subnetwork>> subnetworks_;  // constant once it is made
  std::vector<Parameter> parameters_;
  /// Which of the listed sub-networks use each parameter.
  std::vector<std::vector<size_t>> users_;
  Grid grid_;
  std::shared_ptr<detail::Cells> cells_;
  merge::Rule merge_;
};

}  // namespace nsn
