#include "nsn/functional/activation.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tanh.h>

#include <array>

#include "values/names.h"

namespace nsn {

namespace {

// In the order of the variant's alternatives.
constexpr std::array<const char*, std::variant_size_v<Activation>> kActivationNames = {
    "linear", "relu", "gelu", "silu", "sigmoid", "tanh", "glu", "reglu", "geglu", "swiglu"};
constexpr size_t kFirstGated = 6;

}  // namespace

bool is_gated(const Activation& activation) { return activation.index() >= kFirstGated; }

at::Tensor activate(const at::Tensor& x, const Activation& activation, int64_t dim) {
  struct Visitor {
    const at::Tensor& x;
    int64_t dim;
    at::Tensor value() const { return x.narrow(dim, 0, x.size(dim) / 2); }
    at::Tensor gate() const { return x.narrow(dim, x.size(dim) / 2, x.size(dim) / 2); }
    at::Tensor operator()(const torch::enumtype::kLinear& /*unused*/) const { return x; }
    at::Tensor operator()(const torch::enumtype::kReLU& /*unused*/) const { return at::relu(x); }
    at::Tensor operator()(const torch::enumtype::kGELU& /*unused*/) const { return at::gelu(x); }
    at::Tensor operator()(const torch::enumtype::kSiLU& /*unused*/) const { return at::silu(x); }
    at::Tensor operator()(const torch::enumtype::kSigmoid& /*unused*/) const {
      return at::sigmoid(x);
    }
    at::Tensor operator()(const torch::enumtype::kTanh& /*unused*/) const { return at::tanh(x); }
    at::Tensor operator()(const enumtype::kGLU& /*unused*/) const {
      return value() * at::sigmoid(gate());
    }
    at::Tensor operator()(const enumtype::kReGLU& /*unused*/) const {
      return value() * at::relu(gate());
    }
    at::Tensor operator()(const enumtype::kGeGLU& /*unused*/) const {
      return value() * at::gelu(gate());
    }
    at::Tensor operator()(const enumtype::kSwiGLU& /*unused*/) const {
      return value() * at::silu(gate());
    }
  };
  return std::visit(Visitor{x, dim}, activation);
}

std::string to_string(const Activation& activation) { return kActivationNames[activation.index()]; }

Activation activation_from_string(const std::string& name) {
  static const std::array<Activation, kActivationNames.size()> all = {
      torch::enumtype::kLinear(), torch::enumtype::kReLU(),    torch::enumtype::kGELU(),
      torch::enumtype::kSiLU(),   torch::enumtype::kSigmoid(), torch::enumtype::kTanh(),
      enumtype::kGLU(),           enumtype::kReGLU(),          enumtype::kGeGLU(),
      enumtype::kSwiGLU()};
  return all[detail::find_name(kActivationNames, name, "activation")];
}

}  // namespace nsn
