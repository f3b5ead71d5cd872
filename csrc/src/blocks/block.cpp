#include "nsn/blocks/block.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <cmath>

#include "blocks/reading.h"
#include "kernels/mix.h"
#include "nsn/functional/functional.h"
#include "operations/lanes.h"

namespace nsn {

void misfit(const std::string& expected, const Signal& input) {
  // "floating (*, 4)": which of the two it is that does not fit.
  static const std::string kFloating = "floating ";
  const bool wants_floating = expected.compare(0, kFloating.size(), kFloating) == 0;
  std::string wanted = expected;
  if (wants_floating && input.is_integral) wanted = "floating input";
  if (wants_floating && !input.is_integral) wanted = expected.substr(kFloating.size());
  throw Misfit("expects " + wanted + ", but gets " + (input.is_integral ? "integral " : "") +
               to_string(input.layout));
}

std::vector<at::Tensor> BlockPass::share(size_t p) const {
  const ParameterPlace& place = lanes[0].parameters[p];
  std::vector<at::Tensor> result;
  if (place.is_tied) {
    for (const LanePass& lane : lanes) {
      const at::Tensor& slice = tied->at({place.place, lane.subnetwork});
      // The slice is as wide as the lane's widest use.
      at::Tensor narrowed = slice;
      const Shape kept = kept_shape(lane.fit->slices[p]);
      for (const size_t dim : c10::irange(kept.size())) {
        if (narrowed.size(static_cast<int64_t>(dim)) != kept[dim]) {
          narrowed = narrowed.narrow(static_cast<int64_t>(dim), 0, kept[dim]);
        }
      }
      result.push_back(std::move(narrowed));
    }
    return result;
  }
  if (place.is_private) {
    for (const size_t lane : c10::irange(lanes.size())) result.push_back(parameter(p, lane));
    return result;
  }
  std::vector<const Layout*> layouts;
  for (const LanePass& lane : lanes) layouts.push_back(&lane.fit->slices[p]);
  return functional::share_layouts(parameter(p), layouts, rule, merge_lanes());
}

std::string BlockPass::path() const {
  return outer == nullptr ? std::string(name) : outer->path() + "." + std::string(name);
}

uint64_t BlockPass::dropout_key(size_t lane) const {
  return detail::mix(seed, lanes[lane].output_way);
}

std::vector<merge::Lane> BlockPass::merge_lanes() const {
  std::vector<merge::Lane> result;
  for (const LanePass& lane : lanes) result.push_back(lane.lane);
  return result;
}

std::vector<size_t> BlockPass::first_of_way(uint64_t LanePass::* way) const {
  std::vector<size_t> result;
  for (const size_t lane : c10::irange(lanes.size())) {
    size_t first = 0;
    while (lanes[first].*way != lanes[lane].*way) ++first;
    result.push_back(first);
  }
  return result;
}

Fit Block::fit(const Signal& input, const BlockUse& use) const {
  if (input.is_integral) misfit("floating input", input);
  const auto output = output_shape(kept_shape(input.layout));
  if (!output) misfit("another shape", input);
  Fit result{use, input, {whole(*output)}, {}, 0, {}};
  for (const ParameterSpec& parameter : parameters()) {
    result.slices.push_back(whole(parameter.shape));
  }
  return result;
}

at::Tensor Block::forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                          const BlockPass& pass) const {
  static_cast<void>(x);
  static_cast<void>(parameters);
  static_cast<void>(lane);
  static_cast<void>(pass);
  TORCH_CHECK(false, "nsn::Block: ", type(), " overrides neither forward nor joint. Override one.");
}

Lanes Block::joint(Lanes inputs, const BlockPass& pass) const {
  // own[l] are lane l's parameters.
  std::vector<std::vector<at::Tensor>> own(inputs.size());
  const size_t count = pass.lanes[0].fit->slices.size();
  for (const size_t p : c10::irange(count)) {
    const auto shared = pass.share(p);
    for (const size_t lane : c10::irange(inputs.size())) own[lane].push_back(shared[lane]);
  }
  Lanes outputs;
  const bool builtin = detail::is_builtin(type());
  const auto who = [&] { return "nsn::Block: block '" + pass.path() + "' (" + type() + ")"; };
  for (const size_t lane : c10::irange(inputs.size())) {
    const auto compute = [&](const at::Tensor& x) {
      return forward(x, own[lane], pass.lanes[lane], pass);
    };
    // nsn's own blocks do not work in place, and need no copy.
    outputs.push_back(builtin ? compute(inputs[lane])
                              : detail::compute_outside(inputs[lane], who, compute));
  }
  return outputs;
}

const std::vector<InnerBlock>& Block::inner() const {
  static const std::vector<InnerBlock> none;
  return none;
}

BlockPtr Block::narrowed(const Fit& fit) const {
  static_cast<void>(fit);
  return nullptr;
}

void Block::initialize(at::TensorList parameters) const {
  const at::NoGradGuard no_grad;
  const auto specs = this->parameters();
  // The bound of torch::nn::Linear for weights and biases alike: 1 / sqrt(fan_in).
  double bound = 0.0;
  for (const size_t i : c10::irange(parameters.size())) {
    if (specs[i].is_buffer) {
      parameters[i].zero_();
      continue;
    }
    if (parameters[i].dim() > 1) {
      bound = 1.0 / std::sqrt(static_cast<double>(parameters[i][0].numel()));
    }
    parameters[i].uniform_(-bound, bound);
  }
}

}  // namespace nsn
