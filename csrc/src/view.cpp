#include "nsn/view.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/irange.h>

#include <utility>

namespace nsn {

struct View::State {
  std::shared_ptr<const Core> core;
  size_t subnetwork;
  std::vector<at::Tensor> parameters;  // of all blocks; undefined where the sub-network has no use
  Current current;
};

View::View(std::shared_ptr<const Core> core, const std::string& subnetwork,
           at::TensorList parameters, Current current) {
  const Description& description = core->description();
  const size_t place = description.index_of(subnetwork);
  std::vector<at::Tensor> held(parameters.size());
  for (const size_t block : description.subnetworks()[place].blocks) {
    const auto& described = description.blocks()[block];
    for (const size_t i : c10::irange(described.parameters.size())) {
      const size_t parameter = described.first_parameter + i;
      // detach: the storage of this moment, even when the parameter is pointed to another one.
      held[parameter] = parameters[parameter].detach();
    }
  }
  state_ = std::make_shared<const State>(
      State{std::move(core), place, std::move(held), std::move(current)});
}

at::Tensor View::operator()(const at::Tensor& x) const {
  const at::NoGradGuard no_grad;
  return state_->core->joint(state_->parameters, x, state_->subnetwork, /*training=*/false)[0];
}

const std::string& View::name() const {
  return state_->core->description().subnetworks()[state_->subnetwork].name;
}

std::vector<at::Tensor> View::parameters() const {
  std::vector<at::Tensor> result;
  for (const at::Tensor& parameter : state_->parameters) {
    if (parameter.defined()) result.push_back(parameter);
  }
  return result;
}

bool View::stale() const {
  if (!state_->current) return false;
  const auto current = state_->current();
  return !current.empty() && stale(current);
}

bool View::stale(at::TensorList current) const {
  for (const size_t i : c10::irange(state_->parameters.size())) {
    const at::Tensor& held = state_->parameters[i];
    if (held.defined() &&
        (!held.is_alias_of(current[i]) || held.data_ptr() != current[i].data_ptr())) {
      return true;
    }
  }
  return false;
}

}  // namespace nsn
