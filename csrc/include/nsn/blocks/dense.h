#pragma once

#include <torch/arg.h>
#include <torch/enum.h>

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <nsn/block.h>

namespace nsn {

/// Activation functions; torch::kLinear is none.
using Activation =
    std::variant<torch::enumtype::kLinear, torch::enumtype::kReLU, torch::enumtype::kGELU,
                 torch::enumtype::kSiLU, torch::enumtype::kSigmoid, torch::enumtype::kTanh>;

/// How weights start.
enum class WeightInit {
  /// U(-a, a) with a = 1 / sqrt(in_features), as torch::nn::Linear.
  kKaimingUniform,
  /// U(-a, a) with a = sqrt(6 / (in_features + out_features)) (Glorot & Bengio, 2010).
  kXavierUniform,
};

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

  /// The activation. Default: torch::kLinear, none.
  TORCH_ARG(Activation, activation) = torch::enumtype::kLinear();

  /// The probability that an element is dropped in training, after the activation. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;

  /// How the weight starts. Default: as torch::nn::Linear's.
  TORCH_ARG(WeightInit, weight_init) = WeightInit::kKaimingUniform;

  /// A value that all biases start with. Default: none; they start as torch::nn::Linear's,
  /// U(-a, a) with a = 1 / sqrt(in_features).
  TORCH_ARG(std::optional<double>, bias_init) = std::nullopt;

 public:
  /// The block of these options; checks them. Lets options be given wherever a block is asked for.
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// y = dropout(activation(x W^T + b)), as torch::nn::Linear with what follows it.
///
/// Shapes: x (B, *, in_features), y (B, *, out_features); parameters `weight` (out_features,
/// in_features) and, with bias, `bias` (out_features). A joint pass stacks its lanes into one
/// matrix product. Each sub-network may have its own dropout probability.
class NSN_API Dense final : public Block {
 public:
  /// Throws c10::ValueError where a size is below 1 or a probability outside [0, 1].
  explicit Dense(DenseOptions options);

  const DenseOptions& options() const noexcept { return options_; }

  std::string type() const override { return "Dense"; }
  std::string options_json() const override;
  std::vector<ParameterSpec> parameters() const override;
  std::optional<Shape> output_shape(const Shape& input) const override;
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                     const BlockPass& pass) const override;
  std::vector<at::Tensor> joint(at::TensorList inputs, at::TensorList parameters,
                                const BlockPass& pass) const override;
  std::string expected_input() const override;
  bool has_dropout() const override { return true; }
  void initialize(at::TensorList parameters) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  DenseOptions options_;
};

/// "relu", "linear", ...: the names that JSON and Python use.
NSN_API std::string to_string(const Activation& activation);
NSN_API std::string to_string(WeightInit init);

/// The inverse of `to_string`; throws c10::ValueError that lists the names.
NSN_API Activation activation_from_string(const std::string& name);
NSN_API WeightInit weight_init_from_string(const std::string& name);

}  // namespace nsn
