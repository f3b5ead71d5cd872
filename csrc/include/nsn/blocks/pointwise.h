#pragma once

#include <torch/arg.h>

#include <optional>
#include <string>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/functional/activation.h>

// Blocks without parameters that leave the features as they are. (Pools: pool.h.)

namespace nsn {

/// Options for `ActivationBlock`.
///
///     ActivationOptions(torch::kReLU)
struct NSN_API ActivationOptions {
  ActivationOptions(Activation function = torch::enumtype::kReLU())  // NOLINT
      : function_(function) {}

  /// The activation; not a gated one.
  TORCH_ARG(Activation, function);

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// y = function(x), any shape. In JSON and Python: Activation.
class NSN_API ActivationBlock final : public Block {
 public:
  explicit ActivationBlock(ActivationOptions options);

  const ActivationOptions& options() const noexcept { return options_; }

  std::string type() const override { return "Activation"; }
  std::string options_json() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  Lanes joint(Lanes inputs, const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  ActivationOptions options_;
};

/// Options for `Dropout`.
struct NSN_API DropoutOptions {
  DropoutOptions(double p = 0.5) : p_(p) {}  // NOLINT(google-explicit-constructor)

  /// The probability that an element is dropped in training.
  TORCH_ARG(double, p);

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// Drops elements in training and scales the others by 1 / (1 - p); any shape. Each sub-network may
/// have its own p.
class NSN_API Dropout final : public Block {
 public:
  explicit Dropout(DropoutOptions options);

  const DropoutOptions& options() const noexcept { return options_; }

  std::string type() const override { return "Dropout"; }
  std::string options_json() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  Lanes joint(Lanes inputs, const BlockPass& pass) const override;
  BlockPtr narrowed(const Fit& fit) const override;
  std::optional<double> dropout() const override { return options_.p(); }
  size_t lower(Lowering& to, size_t x) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  DropoutOptions options_;
};

struct NSN_API FlattenOptions {
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// (B, *) to (B, product of *). What follows reads the right features of a narrower sub-network:
/// the leading channels, or the leading part of each position.
class NSN_API Flatten final : public Block {
 public:
  std::string type() const override { return "Flatten"; }
  Fit fit(const Signal& input, const BlockUse& use) const override;
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                     const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  void pretty_print(std::ostream& stream) const override { static_cast<void>(stream); }
};

/// Options for `Upsample`.
struct NSN_API UpsampleOptions {
  UpsampleOptions(int64_t scale_factor) : scale_factor_(scale_factor) {}  // NOLINT

  /// How many times as high and wide the output is.
  TORCH_ARG(int64_t, scale_factor);

  /// "nearest" or "bilinear" (with align_corners = false). Default: "nearest".
  TORCH_ARG(std::string, mode) = "nearest";

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// x (B, C, H, W), y (B, C, scale_factor H, scale_factor W), as torch::nn::Upsample.
class NSN_API Upsample final : public Block {
 public:
  explicit Upsample(UpsampleOptions options);

  const UpsampleOptions& options() const noexcept { return options_; }

  std::string type() const override { return "Upsample"; }
  std::string options_json() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                     const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  UpsampleOptions options_;
};

}  // namespace nsn
