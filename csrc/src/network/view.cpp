#include "nsn/network/view.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <utility>

#include "values/regions.h"

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
  for (const auto& places : description.subnetworks()[place].places) {
    for (const ParameterPlace& at : places) {
      // detach: the storage of this moment, even when the parameter is pointed to another one.
      held[at.place] = parameters[at.place].detach();
      // Whether other sub-networks' statistics were made is known from their counters.
      if (!at.is_private || !description.parameters()[at.place].counts_batches) continue;
      for (const size_t other : description.siblings_of(at.place)) {
        held[other] = parameters[other].detach();
      }
    }
  }
  const auto& blocks = description.blocks();
  const bool has_modules = std::any_of(blocks.begin(), blocks.end(), [](const auto& block) {
    return block.block->module() != nullptr;
  });
  if (has_modules) {
    core = std::make_shared<const Core>(
        description.with_blocks([](const Block& block) { return block.evaluator(); }));
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
  const Description& description = state_->core->description();
  std::vector<at::Tensor> result;
  for (const size_t p : c10::irange(state_->parameters.size())) {
    if (!state_->parameters[p].defined() || description.parameters()[p].is_buffer) continue;
    if (description.parameters()[p].subnetwork) {
      result.push_back(state_->parameters[p]);
      continue;
    }
    for (const Description::User& user : description.users_of(p)) {
      if (user.subnetwork != state_->subnetwork) continue;
      const auto view = common_view({user.slice});
      result.push_back(merge::leading(state_->parameters[p].view(view->view), view->slices[0]));
    }
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
