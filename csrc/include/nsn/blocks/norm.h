#pragma once

#include <torch/arg.h>

#include <string>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/blocks/parts.h>

// Normalisation. All leave the features as they are, at the width that a sub-network has.

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

/// Options for `BatchNorm`.
///
///     BatchNormOptions(32).per_subnetwork({"affine", "statistics"})  // switchable
struct NSN_API BatchNormOptions {
  BatchNormOptions(int64_t features) : features_(features) {}  // NOLINT

  /// The first extent of an input sample.
  TORCH_ARG(int64_t, features);

  /// Default: 1e-5.
  TORCH_ARG(double, eps) = 1e-5;

  /// How far a training pass moves the running statistics towards the batch's. Default: 0.1.
  TORCH_ARG(double, momentum) = 0.1;

  /// Whether there are a weight and a bias. Default: true.
  TORCH_ARG(bool, affine) = true;

  /// Whether training passes update the running statistics; otherwise nsn::recalibrate makes them.
  /// Default: true.
  TORCH_ARG(bool, track) = true;

  /// What each sub-network has for itself, of "affine" and "statistics". Default: nothing.
  TORCH_ARG(Parts, per_subnetwork) = {};

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// torch::nn::BatchNorm1d and 2d: x, y (B, features) or (B, features, *); parameters `weight`,
/// `bias` (features), buffers `running_mean`, `running_var` (features) and `num_batches_tracked`.
///
/// Training normalises each sub-network by its own batch's statistics. Private affine and
/// statistics are switchable batch norm (Yu et al., "Slimmable Neural Networks", 2019). Shared
/// statistics take one step for each pass, towards the mean over the sub-networks that have the
/// channel. Evaluating before statistics were made throws c10::ValueError.
class NSN_API BatchNorm final : public Block {
 public:
  explicit BatchNorm(BatchNormOptions options);

  const BatchNormOptions& options() const noexcept { return options_; }

  std::string type() const override { return "BatchNorm"; }
  std::string options_json() const override;
  std::vector<ParameterSpec> parameters() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  Lanes joint(Lanes inputs, const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  BlockPtr narrowed(const Fit& fit) const override;
  void initialize(at::TensorList parameters) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  /// Moves the running statistics to those of the lanes' batches.
  void update(const std::vector<at::Tensor>& means, const std::vector<at::Tensor>& variances,
              const BlockPass& pass) const;

  BatchNormOptions options_;
};

}  // namespace nsn
