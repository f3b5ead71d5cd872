#pragma once

#include <torch/arg.h>
#include <torch/expanding_array.h>

#include <optional>
#include <string>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/blocks/parts.h>
#include <nsn/blocks/weight_init.h>
#include <nsn/functional/activation.h>

namespace nsn {

/// Options for `Conv1d` and `Conv2d`.
///
///     Conv2dOptions(1, 32, 3).padding(1).activation(torch::kReLU)
template <size_t D>
struct NSN_API ConvOptions {
  ConvOptions(int64_t in_channels, int64_t out_channels, torch::ExpandingArray<D> kernel_size)
      : in_channels_(in_channels), out_channels_(out_channels), kernel_size_(kernel_size) {}

  /// The first extent of an input sample.
  TORCH_ARG(int64_t, in_channels);

  /// The first extent of an output sample.
  TORCH_ARG(int64_t, out_channels);

  /// Extents of the kernel: one number, or one a dimension, as for the next three.
  TORCH_ARG(torch::ExpandingArray<D>, kernel_size);

  /// Default: 1.
  TORCH_ARG(torch::ExpandingArray<D>, stride) = 1;

  /// Zeros on both sides. Default: 0.
  TORCH_ARG(torch::ExpandingArray<D>, padding) = 0;

  /// Default: 1.
  TORCH_ARG(torch::ExpandingArray<D>, dilation) = 1;

  /// Groups of channels that do not see each other. Default: 1.
  TORCH_ARG(int64_t, groups) = 1;

  /// Conv1d alone: pads (kernel_size - 1) * dilation zeros in front and none behind. Default:
  /// false.
  TORCH_ARG(bool, causal) = false;

  /// Whether to add a bias. Default: true.
  TORCH_ARG(bool, bias) = true;

  /// Whether to multiply each output channel with a parameter, which starts at 1. Default: false.
  TORCH_ARG(bool, scale) = false;

  /// The activation. Default: torch::kLinear, none.
  TORCH_ARG(Activation, activation) = torch::enumtype::kLinear();

  /// The probability that an element is dropped in training, after the activation. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;

  /// How the weight starts. Default: as torch::nn::Conv2d's.
  TORCH_ARG(WeightInit, weight_init) = WeightInit::kKaimingUniform;

  /// A value that all biases start with. Default: none; they start as torch::nn::Conv2d's.
  TORCH_ARG(std::optional<double>, bias_init) = std::nullopt;

  /// What each sub-network has for itself, of "bias" and "scale". Default: nothing.
  TORCH_ARG(Parts, per_subnetwork) = {};

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

using Conv1dOptions = ConvOptions<1>;
using Conv2dOptions = ConvOptions<2>;

/// y = dropout(activation(scale * (W * x) + bias)), `*` being the cross-correlation of
/// torch::nn::Conv1d and Conv2d.
///
/// Shapes: x (B, in_channels, *positions), y (B, out_channels, *positions); parameters `weight`
/// (out_channels, in_channels / groups, *kernel), `scale` and `bias` (out_channels); with a gated
/// activation twice as many rows. Dimension: "out", in steps of `groups`; none where each channel
/// is a group (depthwise), since the output then is as wide as the input.
template <size_t D>
class NSN_API Conv final : public Block {
 public:
  /// Throws c10::ValueError where a size or probability is out of range, or groups do not divide.
  explicit Conv(ConvOptions<D> options);

  const ConvOptions<D>& options() const noexcept { return options_; }

  std::string type() const override { return D == 1 ? "Conv1d" : "Conv2d"; }
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
  bool is_depthwise() const;

  ConvOptions<D> options_;
};

using Conv1d = Conv<1>;
using Conv2d = Conv<2>;

/// Options for `ConvTranspose2d`.
struct NSN_API ConvTranspose2dOptions {
  ConvTranspose2dOptions(int64_t in_channels, int64_t out_channels,
                         torch::ExpandingArray<2> kernel_size)
      : in_channels_(in_channels), out_channels_(out_channels), kernel_size_(kernel_size) {}

  TORCH_ARG(int64_t, in_channels);
  TORCH_ARG(int64_t, out_channels);
  TORCH_ARG(torch::ExpandingArray<2>, kernel_size);

  /// Default: 1.
  TORCH_ARG(torch::ExpandingArray<2>, stride) = 1;

  /// What is cut off on both sides. Default: 0.
  TORCH_ARG(torch::ExpandingArray<2>, padding) = 0;

  /// Rows and columns added on one side. Default: 0.
  TORCH_ARG(torch::ExpandingArray<2>, output_padding) = 0;

  /// Default: 1.
  TORCH_ARG(torch::ExpandingArray<2>, dilation) = 1;

  /// Whether to add a bias. Default: true.
  TORCH_ARG(bool, bias) = true;

  /// The activation; not a gated one. Default: torch::kLinear, none.
  TORCH_ARG(Activation, activation) = torch::enumtype::kLinear();

  /// The probability that an element is dropped in training, after the activation. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;

  /// What each sub-network has for itself: "bias" or nothing. Default: nothing.
  TORCH_ARG(Parts, per_subnetwork) = {};

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// y = dropout(activation(transposed convolution(x) + bias)), as torch::nn::ConvTranspose2d without
/// groups.
///
/// Shapes: x (B, in_channels, H, W), y (B, out_channels, H', W') with H' = (H - 1) stride - 2
/// padding
/// + dilation (kernel - 1) + output_padding + 1; parameters `weight` (in_channels, out_channels,
/// *kernel), `bias` (out_channels). Dimension: "out".
class NSN_API ConvTranspose2d final : public Block {
 public:
  explicit ConvTranspose2d(ConvTranspose2dOptions options);

  const ConvTranspose2dOptions& options() const noexcept { return options_; }

  std::string type() const override { return "ConvTranspose2d"; }
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
  ConvTranspose2dOptions options_;
};

}  // namespace nsn
