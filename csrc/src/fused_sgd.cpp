#include "nsn/fused_sgd.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/empty_like.h>

#include <memory>
#include <vector>

namespace nsn {

namespace {

/// What one call updates: parameters whose momentum is all there, or all new.
struct Batch {
  std::vector<at::Tensor> parameters, gradients, momentum;
};

void update(const Batch& batch, const torch::optim::SGDOptions& options, bool first_step) {
  if (batch.parameters.empty()) return;
  at::_fused_sgd_(batch.parameters, batch.gradients, batch.momentum, options.weight_decay(),
                  options.momentum(), options.lr(), options.dampening(), options.nesterov(),
                  /*maximize=*/false, first_step);
  // The operation does not say that it writes; a graph that still holds the old values must learn.
  for (const at::Tensor& parameter : batch.parameters) {
    parameter.unsafeGetTensorImpl()->bump_version();
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
  for (auto& group : param_groups_) {
    const auto& options = static_cast<torch::optim::SGDOptions&>(group.options());
    Batch started, fresh;
    for (const at::Tensor& parameter : group.params()) {
      const at::Tensor& gradient = parameter.grad();
      if (!gradient.defined()) continue;
      if (options.momentum() == 0.0) {
        started.parameters.push_back(parameter);
        started.gradients.push_back(gradient);
        continue;
      }
      auto& state = state_[parameter.unsafeGetTensorImpl()];
      const bool is_fresh = state == nullptr;
      if (is_fresh) {
        auto made = std::make_unique<torch::optim::SGDParamState>();
        made->momentum_buffer(at::empty_like(parameter));
        state = std::move(made);
      }
      Batch& batch = is_fresh ? fresh : started;
      batch.parameters.push_back(parameter);
      batch.gradients.push_back(gradient);
      batch.momentum.push_back(static_cast<torch::optim::SGDParamState&>(*state).momentum_buffer());
    }
    update(started, options, /*first_step=*/false);
    update(fresh, options, /*first_step=*/true);
  }
  return loss;
}

}  // namespace nsn
