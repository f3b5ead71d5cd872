#include "nsn/network/by_lane.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "network/by_lane.h"
#include "operations/autograd.h"
#include "values/regions.h"

namespace nsn {

namespace detail {

namespace {

/// A lane's coefficient in one box of a parameter's view.
struct Share {
  merge::Slice begin, end;
  double coefficient;
};

struct ShareSpec {
  Shape view;
  std::vector<Share> shares;
  merge::Rule rule;
};

/// The parameter itself; backward multiplies its gradient with the lane's coefficients.
struct ScaleFunction : torch::autograd::Function<ScaleFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& parameter,
                            const ShareSpec& spec) {
    keep(ctx, spec);
    return parameter.view_symint(parameter.sym_sizes());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto& spec = kept<ShareSpec>(ctx);
    at::Tensor scaled;
    {
      const at::NoGradGuard no_grad;
      // Zeros where the lane takes no part, whatever its gradient is there.
      scaled = at::zeros_like(gradients[0], {}, at::MemoryFormat::Contiguous);
      const at::Tensor from = gradients[0].reshape(spec.view), to = scaled.view(spec.view);
      for (const Share& share : spec.shares) {
        if (share.coefficient == 0.0) continue;
        at::Tensor box = merge::box(to, share.begin, share.end);
        at::mul_out(box, merge::box(from, share.begin, share.end),
                    at::scalar_tensor(share.coefficient, from.options()));
      }
    }
    if (!at::GradMode::is_enabled()) return {scaled, {}};
    return {refuse_second_derivative(why_refused(spec.rule), {scaled}, gradients)[0], {}};
  }
};

/// The users of a parameter among the lanes of a pass.
struct Users {
  std::vector<merge::Lane> lanes;
  std::vector<const Layout*> slices;
  /// Where the lane is among them; none if it is not.
  std::optional<size_t> own;
};

Users users_among(const std::vector<Core::PassagePtr>& pass, size_t place, size_t lane) {
  Users result;
  for (const size_t i : c10::irange(pass.size())) {
    const Layout* slice = pass[i]->subnetwork->slice_of(place);
    if (slice == nullptr) continue;
    if (i == lane) result.own = result.lanes.size();
    result.lanes.push_back(pass[i]->blocks[0].lane);
    result.slices.push_back(slice);
  }
  return result;
}

at::Tensor parameter_for(const Description& description, size_t place, const at::Tensor& parameter,
                         const std::vector<Core::PassagePtr>& pass, size_t lane, bool training) {
  const auto& described = description.parameters()[place];
  const auto& block = description.blocks()[described.block];
  const Users users = users_among(pass, place, lane);
  if (!users.own || described.subnetwork || block.block->module()) return parameter;
  if (described.is_buffer) {
    TORCH_CHECK_VALUE(!training || users.lanes.size() == 1,
                      "nsn::backward_by_lane: in training the running statistics '", described.name,
                      "' are updated once for all sub-networks that share them, but these run one "
                      "after the other. Give each its own with per_subnetwork={\"statistics\"} "
                      "(not beside a grid), or use a joint pass.");
    return parameter;
  }
  TORCH_CHECK_VALUE(block.rule.is_linear(), "nsn::backward_by_lane: parameter '", described.name,
                    "' has the merge rule '", block.rule.name(),
                    "', a function of all gradients at once, but these come one after the other. "
                    "Use a linear rule, or a joint pass.");
  if (!parameter.requires_grad()) return parameter;
  const auto view = common_view(users.slices);
  ShareSpec spec{view->view, {}, block.rule};
  bool is_whole = true;
  for (const merge::Region& region :
       merge::regions(block.rule, users.lanes, view->slices, view->view)) {
    for (const size_t i : c10::irange(region.lanes.size())) {
      if (region.lanes[i] != *users.own) continue;
      is_whole = is_whole && region.coefficients[i] == 1.0;
      spec.shares.push_back({region.begin, region.end, region.coefficients[i]});
    }
  }
  if (is_whole) return parameter;
  // Also where its coefficient is 0: the merged gradient is then zeros and not none.
  return ScaleFunction::apply(parameter, spec);
}

}  // namespace

std::vector<at::Tensor> for_lane(const Description& description, at::TensorList parameters,
                                 const std::vector<Core::PassagePtr>& pass, size_t lane,
                                 bool training) {
  check_transforms(parameters);
  std::vector<at::Tensor> result;
  for (const size_t place : c10::irange(parameters.size())) {
    const at::Tensor& parameter = parameters[place];
    result.push_back(parameter.defined()
                         ? parameter_for(description, place, parameter, pass, lane, training)
                         : parameter);
  }
  return result;
}

}  // namespace detail

Outputs backward_by_lane(const Network& net, const at::Tensor& x, const LaneLoss& loss,
                         const std::vector<std::string>& names) {
  const ParameterTable table = net->parameter_table();
  const std::vector<size_t> subnetworks = table.places_of(names);
  net->check_modes();
  const uint64_t seed = net->is_training() ? draw_seed() : 0;
  Outputs losses("sub-network");
  bool any = false;
  for (const size_t lane : c10::irange(subnetworks.size())) {
    const std::string name = net->description().name(subnetworks[lane]);
    const at::Tensor value =
        loss(name, net->core().lane(table, x, subnetworks, lane, net->is_training(), seed));
    TORCH_CHECK_VALUE(value.defined(), "nsn::backward_by_lane: the loss of '", name,
                      "' must return a scalar, but returned no tensor.");
    TORCH_CHECK_VALUE(value.dim() == 0,
                      "nsn::backward_by_lane: the loss must return a scalar, but returned a tensor "
                      "of shape ",
                      value.sizes(), ". Reduce it, for example with mean().");
    any = any || value.requires_grad();
    // A lane whose parameters are all frozen has no graph; where all are so, torch says it.
    if (value.requires_grad() || (!any && lane + 1 == subnetworks.size())) value.backward();
    losses.insert(name, value.detach());
  }
  return losses;
}

}  // namespace nsn
