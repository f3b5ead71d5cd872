#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kernels/matrix_product.h"
#include "kernels/pointwise.h"
#include "kernels/product.h"
#include "kernels/window.h"

// A program with its steps fused and its buffers placed: what runs a sub-network's inference in
// float32, without torch. Made from a Program (inference/planning.h), run by plan/run.h.
//
// A value is one sample's activations. Where it has channels in front, (C, *), it may lie with
// those of a position beside each other, (*, C), which is how convolutions and pools read it.

namespace nsn::plan {

using Shape = std::vector<int64_t>;

/// Elements: the product of the extents.
int64_t numel(const Shape& shape);

/// So many elements, and as many more as make whole cache lines.
constexpr int64_t in_lines(int64_t elements) {
  constexpr int64_t kLine = 64 / sizeof(float);
  return (elements + kLine - 1) / kLine * kLine;
}

using kernels::Function;

/// "relu", "gelu", ...
const char* name_of(Function function);

/// A tensor of the plan's table, by its place there.
using TensorPlace = size_t;
/// A value, by its place among those of the plan.
using ValuePlace = size_t;

/// What is done to each element z of a product or convolution before it is stored:
/// after(function(scale * z + shift) + residual), each where it is there.
struct Epilogue {
  /// Of the output features.
  std::optional<TensorPlace> scale, shift;
  std::optional<Function> function;
  /// A value as large as the output, which lies as it does.
  std::optional<ValuePlace> residual;
  std::optional<Function> after;
};

/// rows of x times W^T. Weight: panels.
struct Multiply {
  int64_t rows, in, out;
  TensorPlace weight;
  Epilogue epilogue;
};

/// Extents of (height, width); what has one dimension has height 1.
using Pair = std::array<int64_t, 2>;
using kernels::Window;

/// (*in_size, in) to (*out_size, out), or to as many positions as there are pools. Weight: panels,
/// or, in groups, (taps, in / groups, out).
struct Convolve {
  Window window;
  int64_t in, out, groups;
  TensorPlace weight;
  Epilogue epilogue;
  /// Of so many positions each way, (down, right), the largest result alone is kept.
  Pair pool = {1, 1};

  bool pools() const { return pool != Pair{1, 1}; }
  Pair out_size() const { return {window.out_size[0] / pool[0], window.out_size[1] / pool[1]}; }
  int64_t outputs() const { return out_size()[0] * out_size()[1]; }
  /// The positions that are computed: those behind the last whole pool are not.
  int64_t rows() const { return outputs() * pool[0] * pool[1]; }

  /// Whether it could have such a pool: in one group, with all of its epilogue in registers.
  bool may_pool(const Pair& of) const {
    return groups == 1 && !epilogue.residual && !epilogue.after &&
           epilogue.function.value_or(Function::kRelu) == Function::kRelu &&
           of[0] * of[1] <= kernels::kPooledRows;
  }
};

/// torch's ConvTranspose2d, positions beside channels: (*out_size, in) to (*in_size, out), the
/// window being that of the convolution whose transpose it is. Weight: (taps, in, out).
struct ConvolveTransposed {
  Window window;
  int64_t in, out;
  TensorPlace weight;
  Epilogue epilogue;
};

/// The largest, or the mean, padding counted, of a window.
struct Pool {
  Window window;
  int64_t channels;
  bool is_max;
};

/// (positions, channels) to (channels).
struct GlobalAverage {
  int64_t positions, channels;
};

struct Upsample {
  Pair in_size;
  int64_t factor, channels;
  bool is_bilinear;
};

/// (x - mean) / sqrt(variance + eps) of each row, or without `centred` x / sqrt(mean square + eps).
struct NormalizeRows {
  int64_t rows, columns;
  double eps;
  bool centred;
  std::optional<TensorPlace> weight, bias;
};

/// The same over groups of channels and all positions, (positions, channels).
struct NormalizeGroups {
  int64_t positions, channels, groups;
  double eps;
  std::optional<TensorPlace> weight, bias;
};

/// scale * x + shift along the middle one of (outer, extent, inner).
struct ScaleAndShift {
  int64_t outer, extent, inner;
  std::optional<TensorPlace> scale, shift;
};

struct Apply {
  int64_t count;
  Function function;
};

/// value * function(gate), the halves of the middle one of (outer, 2 * extent, inner).
struct Gate {
  int64_t outer, extent, inner;
  Function function;
};

/// Of two values, or of one and a tensor.
struct Add {
  int64_t count;
  std::optional<TensorPlace> tensor;
};

/// `before` zeros in front of each of `outer` parts of `count` elements.
struct Pad {
  int64_t outer, before, count;
};

/// (rows, columns) to (columns, rows).
struct Transpose {
  int64_t rows, columns;
};

/// A value as it is, where it has to lie elsewhere.
struct Copy {
  int64_t count;
};

/// Rows of a table, for each of `count` numbers of the plan's input, which holds int64.
struct Embed {
  int64_t count, columns, rows;
  TensorPlace table;
};

/// softmax(Q K^T / sqrt(head_dim) + mask) V: (positions, 3 * heads * head_dim) to
/// (positions, heads * head_dim).
struct Attend {
  int64_t positions, heads, head_dim;
  bool causal;

  /// Rows of the scores that are computed at a time.
  int64_t rows() const { return std::min<int64_t>(64, positions); }
  /// Elements of these scores, and of what their products compute in.
  int64_t scores() const { return rows() * positions; }
  int64_t panel() const { return kernels::panel_memory(std::max(positions, head_dim)); }
};

/// What the plan's user computes, by a number of his.
struct Call {
  size_t number;
};

using Kernel = std::variant<Multiply, Convolve, ConvolveTransposed, Pool, GlobalAverage, Upsample,
                            NormalizeRows, NormalizeGroups, ScaleAndShift, Apply, Gate, Add, Pad,
                            Transpose, Copy, Embed, Attend, Call>;

/// "multiply", "convolve", ...
const char* name_of(const Kernel& kernel);
/// The attributes of a kernel that its values' shapes do not show: "kernel 3x3", "relu"; the
/// epilogue's last.
std::vector<std::string> attributes_of(const Kernel& kernel);

/// Where a value's elements are.
enum class Memory { kInput, kOutput, kArena };

struct Value {
  /// As it lies: (height, width, channels), (positions, features).
  Shape shape;
  Memory memory = Memory::kArena;
  /// In the arena: elements from its begin, of one sample.
  int64_t offset = 0;
};

struct Step {
  /// The block that it begins with, for people.
  std::string block;
  Kernel kernel;
  std::vector<ValuePlace> inputs;
  ValuePlace output;
};

/// The values that a step reads, its residual among them.
std::vector<ValuePlace> read_by(const Step& step);

/// In the order in which they run. Value 0 is the input; the output is what kOutput says.
struct Plan {
  std::vector<Value> values;
  std::vector<Step> steps;
  /// Elements of the arena for one sample, and of the memory that a thread computes in beside it.
  int64_t arena = 0, scratch = 0;
  /// Elements of the input and of the output of a sample.
  int64_t inputs = 0, outputs = 0;
  /// Whether its input is embedded, and whether it calls its user.
  bool embeds = false, calls = false;
  /// Floating-point operations of a sample, two for each multiply-add of products, convolutions
  /// and attention; and elements of the weights that products and convolutions read.
  double flops = 0;
  int64_t weights = 0;

  /// Sets what follows from values and steps: offsets in the arena, so that those values whose
  /// lives do not overlap share memory, how much memory there has to be, and what stands above.
  void place();
};

/// For people, one line a step with the byte at which its value lies, and the arena behind them.
std::ostream& operator<<(std::ostream& stream, const Plan& plan);

}  // namespace nsn::plan
