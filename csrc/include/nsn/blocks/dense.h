#pragma once

#include <torch/arg.h>

#include <optional>
#include <string>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/blocks/parts.h>
#include <nsn/blocks/weight_init.h>
#include <nsn/functional/activation.h>

namespace nsn {

/// Options for `Dense`.
///
///     DenseOptions(784, 10).activation(torch::kReLU).dropout(0.2)
struct NSN_API DenseOptions {
  DenseOptions(int64_t in_features, int64_t out_features)
      : in_features_(in_features), out_features_(out_features) {}

  /// The last extent of the input.
  TORCH_ARG(int64_t, in_features);

  /// The last extent of the output.
  TORCH_ARG(int64_t, out_features);

  /// Whether to add a bias. Default: true.
  TORCH_ARG(bool, bias) = true;

  /// Whether to multiply each output feature with a parameter, which starts at 1. Default: false.
  TORCH_ARG(bool, scale) = false;

  /// The activation. Default: torch::kLinear, none.
  TORCH_ARG(Activation, activation) = torch::enumtype::kLinear();

  /// The probability that an element is dropped in training, after the activation. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;

  /// How the weight starts. Default: as torch::nn::Linear's.
  TORCH_ARG(WeightInit, weight_init) = WeightInit::kKaimingUniform;

  /// A value that all biases start with. Default: none; they start as torch::nn::Linear's,
  /// U(-a, a) with a = 1 / sqrt(in_features).
  TORCH_ARG(std::optional<double>, bias_init) = std::nullopt;

  /// What each sub-network has for itself, of "bias" and "scale". Default: nothing.
  TORCH_ARG(Parts, per_subnetwork) = {};

 public:
  /// The block of these options; checks them. Lets options be given wherever a block is asked for.
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// y = dropout(activation(scale * (x W^T) + bias)), as torch::nn::Linear with what follows it.
///
/// Shapes: x (B, *, in_features), y (B, *, out_features); parameters `weight` (out_features,
/// in_features), `scale` and `bias` (out_features); with a gated activation twice as many rows.
/// Dimension: "out". A joint pass stacks lanes into one matrix product. Each sub-network may have
/// its own dropout probability.
class NSN_API Dense final : public Block {
 public:
  /// Throws c10::ValueError where a size is below 1 or a probability outside [0, 1].
  explicit Dense(DenseOptions options);

  const DenseOptions& options() const noexcept { return options_; }

  std::string type() const override { return "Dense"; }
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
  DenseOptions options_;
};

}  // namespace nsn
