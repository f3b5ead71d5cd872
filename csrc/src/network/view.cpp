#include "nsn/network/view.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/irange.h>

#include <utility>

#include "values/regions.h"

namespace nsn {

struct View::State {
  ParameterTable table;  // what the sub-network reads
  Core::PassagePtr passage;
};

View::View(const ParameterTable& network, const std::string& subnetwork) {
  const size_t place = network.places_of({subnetwork})[0];
  ParameterTable table = network.for_inference({place}, /*copies_modules=*/false);
  auto passage = table.core().passage_of(place);
  state_ = std::make_shared<const State>(State{std::move(table), std::move(passage)});
}

at::Tensor View::operator()(const at::Tensor& x) const {
  const at::NoGradGuard no_grad;
  return state_->table.core().evaluate(state_->table, x, state_->passage);
}

const std::string& View::name() const { return state_->passage->subnetwork->name; }

std::vector<at::Tensor> View::parameters() const {
  const Description& description = state_->table.description();
  std::vector<at::Tensor> result;
  for (const size_t p : c10::irange(state_->table.size())) {
    if (!state_->table[p].defined() || description.parameters()[p].is_buffer) continue;
    if (description.parameters()[p].subnetwork) {
      result.push_back(state_->table[p]);
      continue;
    }
    const Layout* slice = state_->passage->subnetwork->slice_of(p);
    if (slice == nullptr) continue;
    const auto view = common_view({slice});
    result.push_back(merge::leading(state_->table[p].view(view->view), view->slices[0]));
  }
  return result;
}

bool View::stale() const {
  const auto current = state_->table.now();
  return !current.empty() && stale(current);
}

bool View::stale(at::TensorList current) const {
  for (const size_t i : c10::irange(state_->table.size())) {
    const at::Tensor& held = state_->table[i];
    if (held.defined() &&
        (!held.is_alias_of(current[i]) || held.data_ptr() != current[i].data_ptr())) {
      return true;
    }
  }
  return false;
}

}  // namespace nsn
