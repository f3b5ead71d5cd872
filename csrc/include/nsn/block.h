#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nsn/export.h>
#include <nsn/functional/dropout.h>
#include <nsn/merge.h>

// A block: a named layer that a sub-network keeps or drops as a whole. A block is a value: it knows
// its options, shapes and formula, and holds no tensors. Its parameters come with each call, which
// is how one implementation serves the C++ module, Python's parameters and views alike.

namespace nsn {

/// The shape of one sample, without the batch dimension.
using Shape = std::vector<int64_t>;

/// A parameter that a block asks for.
struct ParameterSpec {
  std::string name;
  Shape shape;
  /// Whether weight decay is meant for it: true for weights, false for biases.
  bool decays = true;
};

/// How one sub-network keeps one block.
struct BlockUse {
  /// Dropout probability in place of the block's own. Default: none, the block's own.
  std::optional<double> dropout;
};

/// One lane's passage through one block.
struct LanePass {
  merge::Lane lane;
  BlockUse use;
  /// Lanes of equal `input_way` carry the same activations into the block, lanes of equal
  /// `output_way` out of it: up to there their sub-networks keep the same blocks in the same way.
  /// 0 is the network's input; the others are numbered by the description alone.
  size_t input_way = 0;
  size_t output_way = 0;
};

/// All that a block is told about a pass, apart from tensors.
struct BlockPass {
  std::vector<LanePass> lanes;
  merge::Rule rule;
  bool training = false;
  /// Random bits for this block in this pass; keys of masks derive from it and from `output_way`.
  uint64_t seed = 0;
  /// Where the outputs may be laid: with room behind them for what the next block reads beside
  /// them. A hint; a block may lay them anywhere.
  functional::Memory memory;
};

/// The base of all blocks. To make one, override the five pure functions.
class NSN_API Block {
 public:
  virtual ~Block() = default;

  /// The type's name, as in JSON: "Dense".
  virtual std::string type() const = 0;

  /// The options as a JSON object; what `type` is made from again.
  virtual std::string options_json() const = 0;

  /// The parameters, in the order in which `forward` and `joint` get them.
  virtual std::vector<ParameterSpec> parameters() const = 0;

  /// The shape that comes out for samples of shape `input`; nothing if the block cannot take it.
  virtual std::optional<Shape> output_shape(const Shape& input) const = 0;

  /// y for one lane, from that lane's own tensors. x: (B, *input), y: (B, *output).
  virtual at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                             const BlockPass& pass) const = 0;

  /// y of all lanes that pass the block together; `inputs[l]` belongs to `pass.lanes[l]`. Default:
  /// each parameter goes through functional::share, and `forward` runs once a lane.
  virtual std::vector<at::Tensor> joint(at::TensorList inputs, at::TensorList parameters,
                                        const BlockPass& pass) const;

  /// What `output_shape` takes, for messages: "(*, 784), its in_features".
  virtual std::string expected_input() const { return "another shape"; }

  /// Whether the block reads integral input, such as indices, and not floating input.
  virtual bool takes_integers() const { return false; }

  /// Whether sub-networks may set a dropout of their own.
  virtual bool has_dropout() const { return false; }

  /// Fills new parameters. Default: Linear's, Kaiming-uniform weights and uniform biases.
  virtual void initialize(at::TensorList parameters) const;

  /// The options as a person writes them: "784, 784, activation=relu".
  virtual void pretty_print(std::ostream& stream) const { stream << options_json(); }
};

using BlockPtr = std::shared_ptr<const Block>;

/// The product of the extents; throws c10::ValueError, naming `what`, where one is below 1 or where
/// the product is above 2^60.
NSN_API int64_t checked_numel(const Shape& shape, const std::string& what);

/// "(784)", "(3, 28, 28)".
NSN_API std::string to_string(const Shape& shape);

}  // namespace nsn
