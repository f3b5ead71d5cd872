#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nsn/operations/lanes.h>
#include <nsn/values/layout.h>
#include <nsn/values/merge.h>
#include <nsn/visibility.h>

// A block: a named layer that a sub-network keeps or drops as a whole. A block is a value: it knows
// its options, shapes and formula, and holds no tensors. Its parameters come with each call, which
// is how one implementation serves the C++ module, Python's parameters and views alike.
//
// A block of one's own overrides `type` and `forward`, and `parameters` and `output_shape` where it
// has parameters or changes the shape:
//
//     struct Stretch : nsn::Block {
//       std::string type() const override { return "Stretch"; }
//       std::vector<nsn::ParameterSpec> parameters() const override { return {{"factor", {8}}}; }
//       at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const nsn::LanePass&,
//                          const nsn::BlockPass&) const override {
//         return x * parameters[0];
//       }
//     };
//
// One that sub-networks may keep narrower says in `fit` which part of each parameter they use, and
// in `narrowed` what it is by itself then; `forward` gets that part alone. Here the width follows
// the input, whose last extent is `features` at full width:
//
//     struct Stretch : nsn::Block {
//       explicit Stretch(int64_t features) : features(features) {}
//       int64_t features;
//       std::string type() const override { return "Stretch"; }
//       std::vector<nsn::ParameterSpec> parameters() const override {
//         return {{"factor", {features}}};
//       }
//       nsn::Fit fit(const nsn::Signal& input, const nsn::BlockUse& use) const override {
//         const nsn::Axis& last = input.layout.back();
//         if (last.full() != features) nsn::misfit("(*, features)", input);
//         return {use, input, input, {nsn::Layout{last}}, 0, {}};
//       }
//       nsn::BlockPtr narrowed(const nsn::Fit& fit) const override {
//         return std::make_shared<Stretch>(fit.input.layout.back().kept());
//       }
//       at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const nsn::LanePass&,
//                          const nsn::BlockPass&) const override {
//         return x * parameters[0];
//       }
//     };
//
// They take part in joint passes under any merge rule. `torch::nn` modules can be wrapped
// (blocks/wrapped.h).

namespace torch::nn {
class Module;
}

namespace nsn {

/// A parameter, or a buffer, that a block asks for.
struct ParameterSpec {
  std::string name;
  /// At full width.
  Shape shape;
  /// Whether weight decay is meant for it: true for weights, false for biases.
  bool decays = true;
  /// Whether each sub-network that keeps the block has its own, as wide as it keeps it.
  bool per_subnetwork = false;
  /// Whether it is no parameter but a buffer: it is saved and moved, not trained.
  bool is_buffer = false;
  /// Default: none, the network's.
  std::optional<at::ScalarType> dtype = std::nullopt;
  /// "<block>.<parameter>" of the other block whose parameter this is. Default: none, its own.
  std::string tied_to = {};
  /// Whether it is the buffer that counts the batches from which the block's running statistics
  /// were made: they exist where it is above 0.
  bool counts_batches = false;
};

/// A dimension of a block that sub-networks may narrow.
struct Dimension {
  std::string name;
  int64_t full;
  /// What is kept is a multiple of it.
  int64_t step = 1;
  /// The axis of the output that it is (counted from the end where negative); none if it is inside.
  std::optional<int64_t> axis = std::nullopt;
};

/// How one sub-network keeps one block.
struct BlockUse {
  /// Dropout probability in place of the block's own. Default: none, the block's own.
  std::optional<double> dropout;
  /// How much it keeps of named dimensions; those that are not named are kept whole.
  std::map<std::string, int64_t> width;

  int64_t width_of(const std::string& dimension, int64_t full) const {
    const auto found = width.find(dimension);
    return found == width.end() ? full : found->second;
  }
};

/// What flows between blocks, of one sample.
struct Signal {
  Layout layout;
  /// Indices, and no floating numbers.
  bool is_integral = false;
};

/// How a block fits one sub-network: what comes out, and what the sub-network keeps of it.
struct Fit {
  BlockUse use;
  Signal input, output;
  /// Of each parameter, in the order of Block::parameters().
  std::vector<Layout> slices;
  /// Of one sample: two for each multiply-add of products, convolutions and attention.
  int64_t flops = 0;
  /// Of the blocks inside, where there are some.
  std::vector<Fit> inner;
};

/// Thrown by Block::fit where the block cannot take an input; says what it takes instead.
struct NSN_API Misfit : std::runtime_error {
  /// `expected` completes "block 'x' (Dense) ...": "expects (*, 784), its in_features, but gets
  /// (500)".
  using std::runtime_error::runtime_error;
};

/// Throws a Misfit "expects <expected>, but gets <input>".
[[noreturn]] NSN_API void misfit(const std::string& expected, const Signal& input);

/// Where a lane finds one parameter of a block in the table of all parameters.
struct ParameterPlace {
  size_t place;
  /// Whether it is the sub-network's private one.
  bool is_private = false;
  /// Whether other blocks use it too.
  bool is_tied = false;
};

/// A pass's slices of parameters that several blocks use, by place in the table and sub-network.
/// One share node makes all of one parameter, so that each lane's gradient sums up over its uses
/// before the rule merges the lanes.
using TiedSlices = std::map<std::pair<size_t, size_t>, at::Tensor>;

/// One lane's passage through one block.
struct LanePass {
  merge::Lane lane;
  /// The place of the sub-network in the description.
  size_t subnetwork = 0;
  const Fit* fit = nullptr;
  /// One for each parameter of the block.
  const ParameterPlace* parameters = nullptr;
  /// Lanes of equal `input_way` carry the same activations into the block, lanes of equal
  /// `output_way` out of it: up to there their sub-networks keep the same blocks in the same way.
  /// 0 is the network's input; the others depend on the description alone.
  uint64_t input_way = 0;
  uint64_t output_way = 0;
};

/// All that a block is told about a pass, apart from the lanes' inputs.
class NSN_API BlockPass {
 public:
  std::vector<LanePass> lanes;
  merge::Rule rule;
  /// Training drops elements, normalises by the batch's statistics and updates the running ones;
  /// calibration (nsn::recalibrate) does the last two alone.
  bool training = false;
  bool calibrating = false;
  /// Random bits for this block in this pass; keys of masks derive from it and from `output_way`.
  uint64_t seed = 0;
  /// Where the outputs may be laid: with room behind them for what the next block reads beside
  /// them. A hint; a block may lay them anywhere.
  functional::Memory memory;
  /// The parameters of all blocks.
  at::TensorList table;
  /// The lanes' slices of tied parameters, which all uses of the pass have in common.
  const TiedSlices* tied = nullptr;
  /// The block's name, and the pass of the block around it, if there is one.
  std::string_view name = {};
  const BlockPass* outer = nullptr;

  /// "stage.conv1".
  std::string path() const;

  /// Parameter `p` of the block, whole, as `lane` finds it.
  const at::Tensor& parameter(size_t p, size_t lane = 0) const {
    return table[lanes[lane].parameters[p].place];
  }

  /// Whether all lanes share the whole tensor `parameter(p)`, and this block alone uses it.
  bool is_shared(size_t p) const {
    return !lanes[0].parameters[p].is_private && !lanes[0].parameters[p].is_tied;
  }

  /// One tensor for each lane, of its own extents, for any operation: the backward merges. Private
  /// parameters come as they are.
  std::vector<at::Tensor> share(size_t p) const;

  /// The mask's key of a lane.
  uint64_t dropout_key(size_t lane) const;

  std::vector<merge::Lane> merge_lanes() const;

  /// For each lane the first one of the same way, itself if there is none before it.
  std::vector<size_t> first_of_way(uint64_t LanePass::* way) const;
};

class Block;
class Lowering;
using BlockPtr = std::shared_ptr<const Block>;

/// A block inside another one.
struct InnerBlock {
  std::string name;
  BlockPtr block;
  /// Whether a sub-network's own dropout in the outer block holds for this one too.
  bool takes_dropout = true;
};

/// The base of all blocks.
class NSN_API Block {
 public:
  virtual ~Block() = default;

  /// The type's name, as in JSON: "Dense".
  virtual std::string type() const = 0;

  /// The options as a JSON object; what `type` is made from again.
  virtual std::string options_json() const { return "{}"; }

  /// The parameters, in the order in which `forward` gets them.
  virtual std::vector<ParameterSpec> parameters() const { return {}; }

  /// What sub-networks may narrow.
  virtual std::vector<Dimension> dimensions() const { return {}; }

  /// What becomes of `input` in a sub-network that keeps the block as `use` says; throws a Misfit
  /// where the block cannot take it. Default: `output_shape`, and all parameters whole.
  virtual Fit fit(const Signal& input, const BlockUse& use) const;

  /// The shape that comes out for samples of shape `input`, nothing if the block cannot take it.
  /// The default `fit` asks for it. Default: the same shape.
  virtual std::optional<Shape> output_shape(const Shape& input) const { return input; }

  /// y for one lane, from that lane's own tensors, of its own extents. x: (B, *input), y: (B,
  /// *output). A block overrides this or `joint`.
  virtual at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                             const BlockPass& pass) const;

  /// y of all lanes that pass the block together; `inputs[l]`, which the block now has, belongs to
  /// `pass.lanes[l]`. Default: `forward` once a lane, with what `BlockPass::share` gives.
  virtual Lanes joint(Lanes inputs, const BlockPass& pass) const;

  /// What it computes in inference: appends its steps to a program, and returns the value that is
  /// y. Default: one step that calls the block, which copies and exports cannot express.
  virtual size_t lower(Lowering& to, size_t x) const;

  /// The blocks inside, in the order of Fit::inner.
  virtual const std::vector<InnerBlock>& inner() const;

  /// The block that does by itself what this one does in a sub-network: as wide as it keeps it.
  /// Default: nothing, the block itself serves.
  virtual BlockPtr narrowed(const Fit& fit) const;

  /// The block that has a parameter of its own where this one uses another block's (TiedOutput).
  /// Default: nothing.
  virtual BlockPtr untied() const { return nullptr; }

  /// The probability with which it drops elements in training, in place of which sub-networks may
  /// set one of their own; none where it has no dropout.
  virtual std::optional<double> dropout() const { return std::nullopt; }

  /// Throws a Misfit that says why where the block cannot obey a merge rule.
  virtual void check_rule(const merge::Rule& rule) const { static_cast<void>(rule); }

  /// Fills new parameters, of full width. Default: Linear's, Kaiming-uniform weights and uniform
  /// biases; buffers start at 0.
  virtual void initialize(at::TensorList parameters) const;

  /// The options as a person writes them: "784, 784, activation=relu".
  virtual void pretty_print(std::ostream& stream) const { stream << options_json(); }

  /// For blocks that hold a module of their own (blocks/wrapped.h), whose parameters are the
  /// block's: the module; a block that evaluates, on the storages of this moment; an independent
  /// copy. Default: nothing.
  virtual std::shared_ptr<torch::nn::Module> module() const { return nullptr; }
  virtual BlockPtr evaluator() const { return nullptr; }
  virtual BlockPtr copy() const { return nullptr; }
};

}  // namespace nsn
