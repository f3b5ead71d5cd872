#include "operations/autograd.h"
#include "operations/kernels_for.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/constant_pad_nd.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>

#include "nsn/operations/plain_guard.h"
#include "operations/lanes.h"

namespace nsn::detail {

namespace {

thread_local bool plain = false;

struct RefuseSecondDerivative : torch::autograd::Function<RefuseSecondDerivative> {
  static variable_list forward(AutogradContext* ctx, const std::string& why, at::TensorList results,
                               at::TensorList sources) {
    static_cast<void>(sources);
    ctx->saved_data["why"] = why;
    variable_list outputs;
    for (const at::Tensor& result : results) {
      outputs.push_back(part(result.contiguous(), 0, result.sizes()));
    }
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static_cast<void>(gradients);
    TORCH_CHECK(false, ctx->saved_data["why"].toStringRef());
  }
};

}  // namespace

bool is_recorded(at::TensorList tensors) {
  return at::GradMode::is_enabled() &&
         std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& tensor) {
           return tensor.defined() && tensor.requires_grad();
         });
}

namespace {

bool in_torch_func() {
  return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

bool is_dual(const at::Tensor& tensor) {
  return tensor.defined() && tensor._fw_grad(/*level=*/0).defined();
}

}  // namespace

bool under_transform(at::TensorList tensors) {
  return in_torch_func() || std::any_of(tensors.begin(), tensors.end(), is_dual);
}

void check_transforms(at::TensorList tensors) {
  TORCH_CHECK(
      !in_torch_func(),
      "nsn: the transforms of torch.func (grad, vmap, jvp, ...) do not pass nsn's autograd "
      "functions, but one of them is active. Use torch.autograd.grad, or run the transform over "
      "plain torch modules with the same weights; torch.func.functional_call alone is supported.");
  TORCH_CHECK(std::none_of(tensors.begin(), tensors.end(), is_dual),
              "nsn: forward-mode automatic differentiation is not supported, but a tensor with a "
              "tangent was given. Use reverse mode: torch.autograd.grad or backward().");
}

bool plain_forced() { return plain; }

at::Tensor pad_to(const at::Tensor& tensor, at::IntArrayRef shape) {
  if (tensor.sizes() == shape) return tensor;
  std::vector<int64_t> padding;
  for (int64_t dim = tensor.dim() - 1; dim >= 0; --dim) {
    padding.push_back(0);
    padding.push_back(shape[dim] - tensor.size(dim));
  }
  return at::constant_pad_nd(tensor, padding);
}

variable_list refuse_second_derivative(const std::string& why, const variable_list& results,
                                       const variable_list& sources) {
  variable_list defined, tracked;
  std::copy_if(results.begin(), results.end(), std::back_inserter(defined),
               [](const at::Tensor& tensor) { return tensor.defined(); });
  std::copy_if(sources.begin(), sources.end(), std::back_inserter(tracked),
               [](const at::Tensor& tensor) { return tensor.defined(); });
  if (defined.empty()) return results;
  const auto tied =
      RefuseSecondDerivative::apply(why, at::TensorList(defined), at::TensorList(tracked));
  variable_list outputs;
  size_t next = 0;
  for (const at::Tensor& result : results) {
    outputs.push_back(result.defined() ? tied[next++] : result);
  }
  return outputs;
}

std::string why_refused(const merge::Rule& rule) {
  return "nsn: the second derivative through merge rule '" + rule.name() +
         "' does not exist: the merged gradient is not the gradient of one function. Use "
         "the rule sum, run one sub-network alone, or take first derivatives only.";
}

}  // namespace nsn::detail

namespace nsn::functional {

PlainGuard::PlainGuard() : before_(detail::plain) { detail::plain = true; }

PlainGuard::~PlainGuard() { detail::plain = before_; }

}  // namespace nsn::functional
