#pragma once

#include <torch/arg.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/blocks/composite.h>
#include <nsn/blocks/parts.h>
#include <nsn/functional/activation.h>

namespace nsn {

/// Options for `Attention`.
///
///     AttentionOptions(128, 4).causal(true)
struct NSN_API AttentionOptions {
  AttentionOptions(int64_t features, int64_t heads) : features_(features), heads_(heads) {}

  /// The last extent of input and output.
  TORCH_ARG(int64_t, features);

  TORCH_ARG(int64_t, heads);

  /// Width of a head. Default: none, features / heads.
  TORCH_ARG(std::optional<int64_t>, head_dim) = std::nullopt;

  /// Whether a position sees only itself and those before. Default: false.
  TORCH_ARG(bool, causal) = false;

  /// Whether both products add a bias. Default: true.
  TORCH_ARG(bool, bias) = true;

  /// The probability that an element of the output is dropped in training. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;

  /// What each sub-network has for itself: "bias" or nothing. Default: nothing.
  TORCH_ARG(Parts, per_subnetwork) = {};

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// y = dropout(concat_h(softmax(Q_h K_h^T / sqrt(head_dim) + mask) V_h) W_out^T + b_out), by
/// torch's scaled-dot-product attention: x, y (B, T, features); parameters `qkv.weight` (3 heads
/// head_dim, features), `qkv.bias`, `out.weight` (features, heads head_dim), `out.bias`. Dimension:
/// "heads"; a sub-network keeps the leading heads of Q, K and V each. Source: Vaswani et al.,
/// "Attention Is All You Need", 2017.
class NSN_API Attention final : public Block {
 public:
  explicit Attention(AttentionOptions options);

  std::string type() const override { return "Attention"; }
  std::string options_json() const override;
  std::vector<ParameterSpec> parameters() const override;
  std::vector<Dimension> dimensions() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  Lanes joint(Lanes inputs, const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  BlockPtr narrowed(const Fit& fit) const override;
  std::optional<double> dropout() const override { return options_.dropout(); }
  void initialize(at::TensorList parameters) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  int64_t head_dim() const;

  AttentionOptions options_;
};

/// Options for `Transformer`.
///
///     TransformerOptions(128, 4, 512).causal(true).dropout(0.1)
struct NSN_API TransformerOptions {
  TransformerOptions(int64_t features, int64_t heads, int64_t ffn)
      : features_(features), heads_(heads), ffn_(ffn) {}

  /// The last extent of input and output.
  TORCH_ARG(int64_t, features);

  TORCH_ARG(int64_t, heads);

  /// Width of the hidden layer.
  TORCH_ARG(int64_t, ffn);

  /// Width of a head. Default: none, features / heads.
  TORCH_ARG(std::optional<int64_t>, head_dim) = std::nullopt;

  /// Whether a position sees only itself and those before. Default: false.
  TORCH_ARG(bool, causal) = false;

  /// Whether products and layer norms have a bias. Default: true.
  TORCH_ARG(bool, bias) = true;

  /// Of the hidden layer; may be gated. Default: torch::kGELU.
  TORCH_ARG(Activation, activation) = torch::enumtype::kGELU();

  /// The probability that an element is dropped in training, behind attention and ffn. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;

  /// "layer" or "rms". Default: "layer".
  TORCH_ARG(std::string, norm) = "layer";

  /// What each sub-network has for itself, of "bias" (of the products) and "affine" (of the norms).
  /// Default: nothing.
  TORCH_ARG(Parts, per_subnetwork) = {};

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// The pre-norm block: h = x + attention(norm(x)), y = h + ffn(norm(h)): x, y (B, T, features). Its
/// parts are the Residuals "attention" ("norm", "self") and "ffn" ("norm", "up", "down").
/// Dimensions: "heads", "ffn". Source: Xiong et al., "On Layer Normalization in the Transformer
/// Architecture", 2020.
class NSN_API Transformer final : public Composite {
 public:
  explicit Transformer(TransformerOptions options);

  std::string type() const override { return "Transformer"; }
  std::string options_json() const override;
  std::vector<Dimension> dimensions() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  BlockPtr narrowed(const Fit& fit) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  TransformerOptions options_;
};

}  // namespace nsn
