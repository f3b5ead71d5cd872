#pragma once

#include <ATen/core/Tensor.h>
#include <torch/enum.h>

#include <string>
#include <variant>

#include <nsn/visibility.h>

namespace nsn {

namespace enumtype {
struct kGLU {};
struct kReGLU {};
struct kGeGLU {};
struct kSwiGLU {};
}  // namespace enumtype

// Gated activations: value * g(gate), where the value is the first half of the features and the
// gate the second, as torch::nn::GLU has them. g is sigmoid, relu, gelu and silu (Shazeer, "GLU
// Variants Improve Transformer", 2020).
inline constexpr enumtype::kGLU kGLU{};
inline constexpr enumtype::kReGLU kReGLU{};
inline constexpr enumtype::kGeGLU kGeGLU{};
inline constexpr enumtype::kSwiGLU kSwiGLU{};

/// Activation functions; torch::kLinear is none.
using Activation =
    std::variant<torch::enumtype::kLinear, torch::enumtype::kReLU, torch::enumtype::kGELU,
                 torch::enumtype::kSiLU, torch::enumtype::kSigmoid, torch::enumtype::kTanh,
                 enumtype::kGLU, enumtype::kReGLU, enumtype::kGeGLU, enumtype::kSwiGLU>;

/// Whether the activation multiplies one half of its input with a function of the other.
NSN_API bool is_gated(const Activation& activation);

/// activation(x); a gated one halves dimension `dim`.
NSN_API at::Tensor activate(const at::Tensor& x, const Activation& activation, int64_t dim = -1);

/// "relu", "linear", ...: the names that JSON and Python use.
NSN_API std::string to_string(const Activation& activation);

/// The inverse of `to_string`; throws c10::ValueError that lists the names.
NSN_API Activation activation_from_string(const std::string& name);

}  // namespace nsn
