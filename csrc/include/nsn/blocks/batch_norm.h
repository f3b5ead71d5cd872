#pragma once

#include <torch/arg.h>

#include <string>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/blocks/parts.h>

namespace nsn {

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
