#include "nsn/network/fused_sgd.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

namespace nsn {

namespace {

/// One parameter as the operation takes it, which walks over memory and not over strides: in the
/// parameter's own layout where that has no gaps, else on copies.
struct Item {
  at::Tensor parameter;  // the user's
  at::Tensor value, gradient, momentum;
  bool is_fresh;  // its momentum starts with this step
};

/// What one call updates: of one device and dtype, momentum all there or all new.
struct Batch {
  c10::Device device;
  at::ScalarType dtype;
  bool is_fresh;
  std::vector<Item*> items;
};

/// `tensor` in the layout of `like`, which has no gaps.
at::Tensor laid_as(const at::Tensor& tensor, const at::Tensor& like) {
  if (tensor.strides() == like.strides() && !tensor.is_neg()) return tensor;
  at::Tensor result = at::empty_like(like);
  result.copy_(tensor);
  return result;
}

void check(const at::Tensor& parameter) {
  const at::Tensor& gradient = parameter.grad();
  const auto is_plain = [](const at::Tensor& each) {
    return each.layout() == at::kStrided && at::isFloatingType(each.scalar_type());
  };
  TORCH_CHECK_VALUE(is_plain(parameter) && is_plain(gradient) &&
                        gradient.scalar_type() == parameter.scalar_type(),
                    "nsn::FusedSGD: parameters and gradients must be dense, floating and of one "
                    "dtype, but a parameter has dtype ",
                    parameter.scalar_type(), " and layout ", parameter.layout(), ", its gradient ",
                    gradient.scalar_type(), " and ", gradient.layout(),
                    ". Use torch::optim::SGD for it.");
}

void update(const Batch& batch, const torch::optim::SGDOptions& options) {
  std::vector<at::Tensor> values, gradients, momentum;
  for (const Item* item : batch.items) {
    values.push_back(item->value);
    gradients.push_back(item->gradient);
    if (item->momentum.defined()) momentum.push_back(item->momentum);
  }
  at::_fused_sgd_(values, gradients, momentum, options.weight_decay(), options.momentum(),
                  options.lr(), options.dampening(), options.nesterov(), /*maximize=*/false,
                  batch.is_fresh);
  for (const Item* item : batch.items) {
    if (item->value.is_same(item->parameter)) {
      // The operation does not say that it writes; a graph that still holds the old values must
      // learn.
      item->parameter.unsafeGetTensorImpl()->bump_version();
    } else {
      at::Tensor(item->parameter).copy_(item->value);
    }
  }
}

}  // namespace

at::Tensor FusedSGD::step(LossClosure closure) {
  const at::NoGradGuard no_grad;
  at::Tensor loss;
  if (closure) {
    const at::AutoGradMode enable_grad(true);
    loss = closure();
  }
  // Before anything is changed.
  for (const auto& group : param_groups_) {
    for (const at::Tensor& parameter : group.params()) {
      if (parameter.grad().defined()) check(parameter);
    }
  }
  for (auto& group : param_groups_) {
    const auto& options = static_cast<torch::optim::SGDOptions&>(group.options());
    std::vector<Item> items;
    items.reserve(group.params().size());
    std::vector<Batch> batches;
    for (const at::Tensor& parameter : group.params()) {
      if (!parameter.grad().defined()) continue;
      const bool has_gaps = !parameter.is_non_overlapping_and_dense() || parameter.is_neg();
      const at::Tensor value = has_gaps ? parameter.clone(at::MemoryFormat::Contiguous) : parameter;
      Item item{parameter, value, laid_as(parameter.grad(), value), {}, false};
      if (options.momentum() != 0.0) {
        const auto state = state_.find(parameter.unsafeGetTensorImpl());
        item.is_fresh = state == state_.end();
        item.momentum =
            item.is_fresh
                ? at::empty_like(value)
                : laid_as(
                      static_cast<torch::optim::SGDParamState&>(*state->second).momentum_buffer(),
                      value);
      }
      items.push_back(std::move(item));
      Item& own = items.back();
      const auto fits = [&](const Batch& batch) {
        return batch.device == value.device() && batch.dtype == value.scalar_type() &&
               batch.is_fresh == own.is_fresh;
      };
      auto batch = std::find_if(batches.begin(), batches.end(), fits);
      if (batch == batches.end()) {
        batch = batches.insert(batch, {value.device(), value.scalar_type(), own.is_fresh, {}});
      }
      batch->items.push_back(&own);
    }
    for (const Batch& batch : batches) {
      update(batch, options);
      if (options.momentum() == 0.0) continue;
      for (const Item* item : batch.items) {
        auto made = std::make_unique<torch::optim::SGDParamState>();
        made->momentum_buffer(item->momentum);
        state_[item->parameter.unsafeGetTensorImpl()] = std::move(made);
      }
    }
  }
  return loss;
}

}  // namespace nsn
