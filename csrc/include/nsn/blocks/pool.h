#pragma once

#include <torch/arg.h>
#include <torch/expanding_array.h>

#include <optional>
#include <string>
#include <vector>

#include <nsn/blocks/block.h>

namespace nsn {

enum class NSN_API PoolKind { kMax, kAverage };

/// Options for the pools; `Pool<kMax, 2>` is MaxPool2d.
///
///     MaxPool2dOptions(2)
template <PoolKind kind, size_t D>
struct NSN_API PoolOptions {
  PoolOptions(torch::ExpandingArray<D> kernel_size)  // NOLINT(google-explicit-constructor)
      : kernel_size_(kernel_size), stride_(kernel_size) {}

  TORCH_ARG(torch::ExpandingArray<D>, kernel_size);

  /// Default: kernel_size.
  TORCH_ARG(torch::ExpandingArray<D>, stride);

  /// Positions added on both sides; they count in an average. Default: 0.
  TORCH_ARG(torch::ExpandingArray<D>, padding) = 0;

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// The largest value, or the mean, of each window: x (B, C, *positions), y (B, C, *positions), as
/// torch::nn::MaxPool1d, MaxPool2d, AvgPool1d and AvgPool2d. The output is as wide as the input.
template <PoolKind kind, size_t D>
class NSN_API Pool final : public Block {
 public:
  explicit Pool(PoolOptions<kind, D> options);

  const PoolOptions<kind, D>& options() const noexcept { return options_; }

  std::string type() const override;
  std::string options_json() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                     const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  PoolOptions<kind, D> options_;
};

using MaxPool1dOptions = PoolOptions<PoolKind::kMax, 1>;
using MaxPool2dOptions = PoolOptions<PoolKind::kMax, 2>;
using AvgPool1dOptions = PoolOptions<PoolKind::kAverage, 1>;
using AvgPool2dOptions = PoolOptions<PoolKind::kAverage, 2>;
using MaxPool1d = Pool<PoolKind::kMax, 1>;
using MaxPool2d = Pool<PoolKind::kMax, 2>;
using AvgPool1d = Pool<PoolKind::kAverage, 1>;
using AvgPool2d = Pool<PoolKind::kAverage, 2>;

struct NSN_API GlobalAvgPoolOptions {
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// The mean over all positions: x (B, C, *), y (B, C).
class NSN_API GlobalAvgPool final : public Block {
 public:
  std::string type() const override { return "GlobalAvgPool"; }
  Fit fit(const Signal& input, const BlockUse& use) const override;
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                     const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  void pretty_print(std::ostream& stream) const override { static_cast<void>(stream); }
};

}  // namespace nsn
