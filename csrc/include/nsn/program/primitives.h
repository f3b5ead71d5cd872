#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include <nsn/functional/activation.h>
#include <nsn/values/layout.h>
#include <nsn/visibility.h>

// The small fixed set of operations that inference is made of. Each is a value that lists its
// attributes; inputs and tensors come with the step that holds it (program.h). Shapes are those of
// a batch: x (B, *), and what is along "the channels" is along dimension 1.

namespace nsn {

class Block;
struct Fit;

namespace primitives {

/// y = x W^T + b over the last dimension. Tensors: weight (out, in), bias (out) or none.
struct Product {
  static constexpr const char* kName = "product";
};

/// The cross-correlation of torch's Conv1d and Conv2d, of as many dimensions as `stride` has.
/// Tensors: weight (out, in / groups, *kernel), bias (out) or none.
struct Convolution {
  static constexpr const char* kName = "convolution";
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups = 1;
};

/// torch's ConvTranspose2d. Tensors: weight (in, out, *kernel), bias (out) or none.
struct TransposedConvolution {
  static constexpr const char* kName = "transposed_convolution";
  std::vector<int64_t> stride, padding, output_padding, dilation;
};

/// Zeros in front of the last dimension.
struct Pad {
  static constexpr const char* kName = "pad";
  int64_t before = 0;
};

/// torch's MaxPool1d and 2d.
struct MaxPool {
  static constexpr const char* kName = "max_pool";
  std::vector<int64_t> kernel, stride, padding;
};

/// torch's AvgPool1d and 2d, which count their padding.
struct AveragePool {
  static constexpr const char* kName = "average_pool";
  std::vector<int64_t> kernel, stride, padding;
};

/// The mean over all that is behind the channels: (B, C, *) to (B, C).
struct GlobalAverage {
  static constexpr const char* kName = "global_average";
};

/// (B, C, H, W) to (B, C, factor H, factor W); `mode` is "nearest" or "bilinear" (align_corners =
/// false).
struct Upsample {
  static constexpr const char* kName = "upsample";
  int64_t factor = 1;
  std::string mode;
};

/// Over the last dimension. Tensors: weight and bias (features) or none.
struct LayerNorm {
  static constexpr const char* kName = "layer_norm";
  double eps = 0.0;
};

/// Over the last dimension. Tensor: weight (features) or none.
struct RMSNorm {
  static constexpr const char* kName = "rms_norm";
  double eps = 0.0;
};

/// Over groups of channels. Tensors: weight and bias (channels) or none.
struct GroupNorm {
  static constexpr const char* kName = "group_norm";
  int64_t groups = 1;
  double eps = 0.0;
};

/// By running statistics, along the channels. Tensors: weight and bias (features) or none,
/// running_mean and running_var (features), num_batches_tracked (). `momentum` is for who trains
/// it; 0 where the statistics are not tracked.
struct BatchNorm {
  static constexpr const char* kName = "batch_norm";
  double eps = 0.0, momentum = 0.0;
};

/// y = scale * x + shift along a dimension, counted from the end where negative. Tensors: scale,
/// bias (the shift) or none.
struct ScaleAndShift {
  static constexpr const char* kName = "scale_and_shift";
  int64_t dimension = 1;
};

/// y = function(x), which is not gated.
struct Activate {
  static constexpr const char* kName = "activation";
  Activation function;
};

/// y = value * g(gate), the two halves of a dimension.
struct Gate {
  static constexpr const char* kName = "gate";
  Activation function;
  int64_t dimension = -1;
};

/// Nothing in inference; what training drops, for who trains a copy.
struct Drop {
  static constexpr const char* kName = "dropout";
  double probability = 0.0;
};

/// The sum of two inputs of one shape, or of an input and a tensor: weight, of a sample's shape.
struct Add {
  static constexpr const char* kName = "add";
};

/// (B, *) to (B, *shape).
struct Reshape {
  static constexpr const char* kName = "reshape";
  Shape shape;
};

/// y = E[x], x integral. Tensor: weight (num_embeddings, embedding_dim).
struct Embed {
  static constexpr const char* kName = "embedding";
};

/// softmax(Q K^T / sqrt(head_dim) + mask) V for each head; x holds Q, K and V behind one another:
/// (B, T, 3 * heads * head_dim) to (B, T, heads * head_dim). `causal`: a position sees only itself
/// and those before.
struct Attend {
  static constexpr const char* kName = "attention";
  int64_t heads = 1;
  bool causal = false;
};

/// A block that is not nsn's, as a sub-network keeps it; tensors: the parameters, whole where
/// `fit` cuts them.
struct Call {
  static constexpr const char* kName = "block";
  std::string type, options;
  std::shared_ptr<const Block> block;
  std::shared_ptr<const Fit> fit;
};

}  // namespace primitives

/// One of them. A table over all of them is a visitor with a case each: one that lacks a case does
/// not compile.
using Primitive =
    std::variant<primitives::Product, primitives::Convolution, primitives::TransposedConvolution,
                 primitives::Pad, primitives::MaxPool, primitives::AveragePool,
                 primitives::GlobalAverage, primitives::Upsample, primitives::LayerNorm,
                 primitives::RMSNorm, primitives::GroupNorm, primitives::BatchNorm,
                 primitives::ScaleAndShift, primitives::Activate, primitives::Gate,
                 primitives::Drop, primitives::Add, primitives::Reshape, primitives::Embed,
                 primitives::Attend, primitives::Call>;

/// "product", "convolution", ...
NSN_API const char* name_of(const Primitive& primitive);

}  // namespace nsn
