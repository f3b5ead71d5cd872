#pragma once

#include <torch/arg.h>

#include <string>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/blocks/parts.h>

// Normalisation of each sample by itself. All leave the features as they are, at the width that a
// sub-network has.

namespace nsn {

/// Options for `LayerNorm`.
struct NSN_API LayerNormOptions {
  LayerNormOptions(int64_t features) : features_(features) {}  // NOLINT

  /// The last extent of the input.
  TORCH_ARG(int64_t, features);

  /// Default: 1e-5.
  TORCH_ARG(double, eps) = 1e-5;

  /// Whether there is a weight (and a bias). Default: true.
  TORCH_ARG(bool, affine) = true;

  /// Whether there is a bias beside the weight. Default: true.
  TORCH_ARG(bool, bias) = true;

  /// What each sub-network has for itself: "affine" or nothing. Default: nothing.
  TORCH_ARG(Parts, per_subnetwork) = {};

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension, as
/// torch::nn::LayerNorm: x, y (B, *, features); parameters `weight`, `bias` (features).
class NSN_API LayerNorm final : public Block {
 public:
  explicit LayerNorm(LayerNormOptions options);

  const LayerNormOptions& options() const noexcept { return options_; }

  std::string type() const override { return "LayerNorm"; }
  std::string options_json() const override;
  std::vector<ParameterSpec> parameters() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                     const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  BlockPtr narrowed(const Fit& fit) const override;
  void initialize(at::TensorList parameters) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  LayerNormOptions options_;
};

/// Options for `RMSNorm`.
struct NSN_API RMSNormOptions {
  RMSNormOptions(int64_t features) : features_(features) {}  // NOLINT

  /// The last extent of the input.
  TORCH_ARG(int64_t, features);

  /// Default: 1e-5.
  TORCH_ARG(double, eps) = 1e-5;

  /// Whether there is a weight. Default: true.
  TORCH_ARG(bool, affine) = true;

  /// What each sub-network has for itself: "affine" or nothing. Default: nothing.
  TORCH_ARG(Parts, per_subnetwork) = {};

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// y = x / sqrt(mean(x^2) + eps) * weight over the last dimension: x, y (B, *, features); parameter
/// `weight` (features). Source: Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019.
class NSN_API RMSNorm final : public Block {
 public:
  explicit RMSNorm(RMSNormOptions options);

  std::string type() const override { return "RMSNorm"; }
  std::string options_json() const override;
  std::vector<ParameterSpec> parameters() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                     const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  BlockPtr narrowed(const Fit& fit) const override;
  void initialize(at::TensorList parameters) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  RMSNormOptions options_;
};

/// Options for `GroupNorm`.
struct NSN_API GroupNormOptions {
  GroupNormOptions(int64_t groups, int64_t channels) : groups_(groups), channels_(channels) {}

  /// How many groups the channels fall into; divides `channels`.
  TORCH_ARG(int64_t, groups);

  /// The first extent of an input sample.
  TORCH_ARG(int64_t, channels);

  /// Default: 1e-5.
  TORCH_ARG(double, eps) = 1e-5;

  /// Whether there are a weight and a bias. Default: true.
  TORCH_ARG(bool, affine) = true;

  /// What each sub-network has for itself: "affine" or nothing. Default: nothing.
  TORCH_ARG(Parts, per_subnetwork) = {};

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// torch::nn::GroupNorm: x, y (B, channels, *); parameters `weight`, `bias` (channels). A narrower
/// input consists of whole groups, or of the leading part of each.
class NSN_API GroupNorm final : public Block {
 public:
  explicit GroupNorm(GroupNormOptions options);

  const GroupNormOptions& options() const noexcept { return options_; }

  std::string type() const override { return "GroupNorm"; }
  std::string options_json() const override;
  std::vector<ParameterSpec> parameters() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                     const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  BlockPtr narrowed(const Fit& fit) const override;
  void initialize(at::TensorList parameters) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  GroupNormOptions options_;
};

}  // namespace nsn
