#include "blocks/support.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "blocks/reading.h"
#include "operations/lanes.h"

namespace nsn::detail {

namespace {

/// A fit is anybody's: what it keeps has to be part of what there is.
void check_fit(const Block& block, const Fit& fit) {
  const auto specs = block.parameters();
  if (fit.slices.size() != specs.size()) {
    throw Misfit("has " + std::to_string(specs.size()) + " parameters, but its fit has " +
                 std::to_string(fit.slices.size()) +
                 " slices, of which it needs one for each parameter,");
  }
  for (size_t p = 0; p < specs.size(); ++p) {
    const Layout& slice = fit.slices[p];
    bool fits = slice.size() == specs[p].shape.size();
    for (size_t i = 0; fits && i < slice.size(); ++i) {
      fits = slice[i].full() == specs[p].shape[i] && slice[i].kept() >= 1 &&
             slice[i].kept() <= slice[i].full();
    }
    if (fits) continue;
    throw Misfit("keeps " + to_string(slice) + " of its parameter '" + specs[p].name +
                 "' of shape " + to_string(specs[p].shape) +
                 ", which is no part of it. Its fit has to give a slice of that shape, for what " +
                 "comes");
  }
  if (fit.inner.size() != block.inner().size()) {
    throw Misfit("has " + std::to_string(block.inner().size()) +
                 " blocks inside, but its fit has " + std::to_string(fit.inner.size()) +
                 " of them, for what comes");
  }
}

}  // namespace

Fit checked_fit(const Block& block, const Signal& input, const BlockUse& use) {
  Fit fit = block.fit(input, use);
  if (!is_builtin(block.type())) check_fit(block, fit);
  int64_t numel = 1;
  for (const Axis& axis : fit.output.layout) numel = saturating_product({numel, axis.full()});
  if (numel > int64_t{1} << 60) throw Misfit("would make more than 2^60 elements of the input");
  return fit;
}

std::optional<Axis> reads(const Axis& axis, int64_t declared) {
  if (axis.full() == declared) return axis;
  if (axis.kept() == declared) return Axis(declared);
  return std::nullopt;
}

Axis rows_axis(const Axis& out, bool gated) {
  if (!gated) return out;
  std::vector<Axis::Factor> factors{{2, 2}};
  factors.insert(factors.end(), out.factors().begin(), out.factors().end());
  return Axis(factors);
}

functional::SharedLanes shared_lanes(const BlockPass& pass, size_t p, std::vector<size_t> same_as) {
  functional::SharedLanes result{pass.merge_lanes(), pass.rule, {}, std::move(same_as)};
  const auto is_whole = [&](const LanePass& lane) {
    const Layout& slice = lane.fit->slices[p];
    return std::all_of(slice.begin(), slice.end(),
                       [](const Axis& axis) { return axis.is_whole(); });
  };
  if (std::all_of(pass.lanes.begin(), pass.lanes.end(), is_whole)) return result;
  for (const LanePass& lane : pass.lanes) result.slices.push_back(lane.fit->slices[p]);
  return result;
}

functional::ReluDropout dropout_of(std::optional<double> standard, const BlockPass& pass) {
  functional::ReluDropout result{false, {}, pass.first_of_way(&LanePass::output_way)};
  for (const size_t lane : c10::irange(pass.lanes.size())) {
    if (!standard || !pass.training) {
      result.dropout.emplace_back();
      continue;
    }
    const double own = pass.lanes[lane].fit->use.dropout.value_or(*standard);
    result.dropout.push_back({own, pass.dropout_key(lane)});
  }
  return result;
}

Lanes drop(Lanes y, std::optional<double> standard, const BlockPass& pass) {
  const auto options = dropout_of(standard, pass);
  return options.is_identity() ? y : functional::relu_dropout(y, options, pass.memory);
}

void initialize_layer(const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& scale,
                      WeightInit init, std::optional<double> bias_init, int64_t fan_in,
                      int64_t fan_out) {
  const at::NoGradGuard no_grad;
  const auto in = static_cast<double>(fan_in), out = static_cast<double>(fan_out);
  const bool xavier = init == WeightInit::kXavierUniform;
  const double bound = xavier ? std::sqrt(6.0 / (in + out)) : 1.0 / std::sqrt(in);
  weight.uniform_(-bound, bound);
  if (scale.defined()) scale.fill_(1.0);
  if (!bias.defined()) return;
  if (bias_init) {
    bias.fill_(*bias_init);
  } else {
    bias.uniform_(-1.0 / std::sqrt(in), 1.0 / std::sqrt(in));
  }
}

std::optional<GroupCut> cut_groups(const Axis& axis, int64_t groups) {
  if (axis.full() % groups != 0) return std::nullopt;
  const int64_t per_group = axis.full() / groups;
  const auto& factors = axis.factors();
  if (groups == 1) return GroupCut{1, axis.kept()};
  if (factors.size() == 1) {
    if (factors[0].kept % per_group != 0) return std::nullopt;
    return GroupCut{factors[0].kept / per_group, per_group};
  }
  if (factors.size() == 2 && factors[0].full == groups) {
    return GroupCut{factors[0].kept, factors[1].kept};
  }
  return std::nullopt;
}

}  // namespace nsn::detail
