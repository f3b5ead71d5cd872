#pragma once

#include <c10/util/ArrayRef.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <utility>

#include "nsn/values/merge.h"

// What the autograd functions here have in common.

namespace nsn::detail {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Whether autograd would record an operation on these tensors. Where it would not, an operation
/// computes directly, which spares inference the graph's overhead.
bool is_recorded(at::TensorList tensors);

/// Whether a transform of torch.func is active, or a tensor is a dual one of forward-mode AD:
/// neither passes a C++ autograd function.
bool under_transform(at::TensorList tensors);

/// Refuses what cannot pass a C++ autograd function: the transforms of torch.func, and dual tensors
/// of forward-mode AD. Without this the message would name an internal of torch, or the tangent
/// would be lost.
void check_transforms(at::TensorList tensors);

/// `tensor` with zeros behind it in each dimension, up to `shape`; differentiable.
at::Tensor pad_to(const at::Tensor& tensor, at::IntArrayRef shape);

/// `results`, computed outside the graph, tied to `sources`; throws `why` where somebody
/// differentiates them, since a merged gradient is not the gradient of one function. (torch's
/// DelayedError would do it too, with a message that does not say why.)
variable_list refuse_second_derivative(const std::string& why, const variable_list& results,
                                       const variable_list& sources);

std::string why_refused(const merge::Rule& rule);

/// Makes C++ values of any kind part of an autograd context.
template <typename T>
struct Holder : torch::CustomClassHolder {
  explicit Holder(T held) : value(std::move(held)) {}
  T value;
};

template <typename T>
void keep(AutogradContext* ctx, T value) {
  ctx->saved_data["nsn"] =
      c10::IValue::make_capsule(c10::make_intrusive<Holder<T>>(std::move(value)));
}

template <typename T>
const T& kept(AutogradContext* ctx) {
  return static_cast<const Holder<T>&>(*ctx->saved_data["nsn"].toCapsule()).value;
}

}  // namespace nsn::detail
