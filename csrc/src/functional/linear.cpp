#include "nsn/functional/linear.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <c10/util/accumulate.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "autograd.h"
#include "lanes.h"
#include "masks.h"
#include "workspace.h"

namespace nsn::functional {

using detail::AutogradContext;
using detail::Groups;
using detail::part;
using detail::stack_rows;
using detail::variable_list;

namespace {

struct LinearSpec {
  std::vector<size_t> same_as;
  std::vector<merge::Lane> lanes;
  merge::Rule rule;
  ReluDropout after;
  Memory memory;
  std::optional<at::ScalarType> autocast;  // the dtype that the products run in
};

/// Keeps autocast from casting again what this file casts itself.
struct WithoutAutocast {
  explicit WithoutAutocast(at::DeviceType device) {
    if (at::autocast::is_autocast_available(device)) {
      guard.emplace(
          c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
    }
  }
  std::optional<c10::impl::ExcludeDispatchKeyGuard> guard;
};

at::Tensor cast(const at::Tensor& tensor, std::optional<at::ScalarType> dtype) {
  return dtype && tensor.defined() ? tensor.to(*dtype) : tensor;
}

// -------------------------------------------------------------------------------------------------
// Forward

struct Forward {
  variable_list outputs;  // one a lane
  at::Tensor stacked;     // the inputs of all groups, on top of each other
  at::Tensor weight;      // as multiplied
  Groups groups;          // of lanes of one input, in the order in which they are stacked
};

/// `masks`, where given, gets what the backward of the element-wise part needs.
Forward forward_of(const LinearSpec& spec, at::TensorList inputs, const at::Tensor& given_weight,
                   const at::Tensor& given_bias, detail::Masks* masks) {
  Forward result{{}, {}, cast(given_weight, spec.autocast), Groups(spec.same_as)};
  result.groups.sort_as_laid(inputs);
  std::vector<at::Tensor> rows;
  std::vector<int64_t> first_row{0};
  for (const size_t lane : result.groups.first) {
    rows.push_back(detail::as_rows(cast(inputs[lane], spec.autocast)));
    first_row.push_back(first_row.back() + rows.back().size(0));
  }
  result.stacked = stack_rows(rows);
  const at::Tensor bias = cast(given_bias, spec.autocast);
  const at::Tensor weight = result.weight.t();
  const int64_t columns = weight.size(1);

  const bool element_wise = !spec.after.is_identity();
  const auto dtype = result.stacked.scalar_type();
  // In a narrower dtype the product would be rounded before the bias is added.
  const bool adds_bias_later = element_wise && (dtype == at::kFloat || dtype == at::kDouble);
  const bool in_place =
      element_wise && result.groups.first.size() == Groups(spec.after.same_as).first.size();
  const int64_t room = element_wise && !in_place ? 0 : spec.memory.room;
  at::Tensor product = detail::empty_in({spec.memory.workspace, room}, {first_row.back(), columns},
                                        result.stacked.options());
  if (bias.defined() && !adds_bias_later) {
    at::addmm_out(product, bias, result.stacked, weight);
  } else {
    at::mm_out(product, result.stacked, weight);
  }

  for (const size_t lane : c10::irange(inputs.size())) {
    std::vector<int64_t> sizes = inputs[lane].sizes().vec();
    sizes.back() = columns;
    const int64_t row = first_row[result.groups.group_of[lane]];
    result.outputs.push_back(part(product, row * columns, sizes));
  }
  if (element_wise) {
    result.outputs =
        detail::relu_dropout_forward(result.outputs, adds_bias_later ? bias : at::Tensor(),
                                     spec.after, spec.memory, in_place, masks);
  }
  return result;
}

// -------------------------------------------------------------------------------------------------
// Backward

/// The merged gradient of the weight (and of the bias): rule(dY_l^T X_l).
struct MergedGradients {
  at::Tensor weight, bias;
};

MergedGradients merge_linear(const LinearSpec& spec, const std::vector<at::Tensor>& dy,
                             const std::vector<at::Tensor>& x, bool need_weight, bool need_bias) {
  MergedGradients result;
  const auto some =
      std::find_if(dy.begin(), dy.end(), [](const at::Tensor& tensor) { return tensor.defined(); });
  if (some == dy.end()) return result;
  const int64_t out = some->size(1);
  const int64_t in = x[0].size(1);

  if (!spec.rule.is_linear()) {
    const auto merged = [&](at::IntArrayRef shape, const auto& gradient_of_lane) {
      std::vector<at::Tensor> gradients;
      for (const size_t lane : c10::irange(dy.size())) {
        gradients.push_back(dy[lane].defined() ? gradient_of_lane(lane) : at::Tensor());
      }
      const std::vector<merge::Slice> slices(dy.size(), shape.vec());
      return merge::apply(spec.rule, spec.lanes, slices, gradients, shape);
    };
    if (need_weight) {
      result.weight = merged({out, in}, [&](size_t l) { return at::mm(dy[l].t(), x[l]); });
    }
    if (need_bias) {
      result.bias = merged({out}, [&](size_t l) { return at::sum(dy[l], {0}); });
    }
    return result;
  }

  // Lanes that count, and whether one coefficient serves all of them; then the product scales.
  const auto coefficients = spec.rule.coefficients(spec.lanes);
  std::vector<size_t> counted;
  for (const size_t lane : c10::irange(dy.size())) {
    if (dy[lane].defined() && coefficients[lane] != 0.0) counted.push_back(lane);
  }
  if (counted.empty()) {
    if (need_weight) result.weight = at::zeros({out, in}, some->options());
    if (need_bias) result.bias = at::zeros({out}, some->options());
    return result;
  }
  double scale = coefficients[counted[0]];
  const bool uniform = std::all_of(counted.begin(), counted.end(),
                                   [&](size_t lane) { return coefficients[lane] == scale; });
  if (!uniform) scale = 1.0;
  std::vector<at::Tensor> dy_counted, x_counted;
  for (const size_t lane : counted) {
    dy_counted.push_back(uniform ? dy[lane] : at::mul(dy[lane], coefficients[lane]));
    x_counted.push_back(x[lane]);
  }
  const at::Tensor dy_stacked = stack_rows(dy_counted);
  if (need_weight) {
    result.weight = detail::empty_in({spec.memory.workspace}, {out, in}, some->options());
    at::addmm_out(result.weight, result.weight, dy_stacked.t(), stack_rows(x_counted),
                  /*beta=*/0, /*alpha=*/scale);
  }
  if (need_bias) {
    result.bias = at::sum(dy_stacked, {0});
    if (scale != 1.0) result.bias.mul_(scale);
  }
  return result;
}

/// What a pass leaves for its backward, apart from tensors that autograd watches.
struct LinearState {
  LinearSpec spec;
  detail::Masks masks;
  Groups groups;
};

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  // Places among forward's tensors: the weight, one input a lane, then the bias, which has an edge
  // in the graph only where there is one.
  static constexpr size_t kWeight = 0, kInputs = 1;

  static variable_list forward(AutogradContext* ctx, const at::Tensor& weight,
                               at::TensorList inputs, const std::optional<at::Tensor>& given_bias,
                               const LinearSpec& spec) {
    ctx->set_materialize_grads(false);
    const at::Tensor bias = given_bias.value_or(at::Tensor());
    detail::Masks masks;
    Forward result = forward_of(spec, inputs, weight, bias, &masks);
    detail::keep(ctx, LinearState{spec, std::move(masks), std::move(result.groups)});
    // The inputs for the second derivative, the rest for the first.
    variable_list saved{weight, bias, result.weight, result.stacked};
    saved.insert(saved.end(), inputs.begin(), inputs.end());
    ctx->save_for_backward(std::move(saved));
    return result.outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto& state = detail::kept<LinearState>(ctx);
    const LinearSpec& spec = state.spec;
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &weight = saved[0], &bias = saved[1];
    const variable_list inputs(saved.begin() + 4, saved.end());
    const WithoutAutocast guard(weight.device().type());

    if (!at::GradMode::is_enabled()) return first_order(ctx, state, saved, gradients);
    if (detail::is_plain_derivative(spec.rule, spec.lanes) && !spec.autocast) {
      return differentiable(ctx, weight, bias, inputs, before_masks(state, gradients));
    }
    variable_list results;
    {
      const at::NoGradGuard no_grad;
      results = first_order(ctx, state, saved, gradients);
    }
    variable_list sources = gradients;
    sources.insert(sources.end(), inputs.begin(), inputs.end());
    sources.push_back(weight);
    sources.push_back(bias);
    const std::string why =
        spec.autocast
            ? "nsn: the second derivative under autocast is not supported. Leave autocast "
              "for the passes that are differentiated twice."
            : detail::why_refused(spec.rule);
    return detail::refuse_second_derivative(why, results, sources);
  }

 private:
  /// The gradients of the product.
  static variable_list before_masks(const LinearState& state, const variable_list& gradients) {
    return state.masks.masks.empty() ? gradients
                                     : detail::relu_dropout_backward(state.masks, gradients);
  }

  static variable_list first_order(AutogradContext* ctx, const LinearState& state,
                                   const variable_list& saved, const variable_list& gradients) {
    const LinearSpec& spec = state.spec;
    const at::Tensor &weight = saved[0], &bias = saved[1], &weight_used = saved[2],
                     &stacked = saved[3];
    const size_t lanes = gradients.size();
    const int64_t in = stacked.size(1);
    std::vector<at::Tensor> group_rows, x(lanes), dy(lanes);
    int64_t row = 0;
    for (const size_t lane : state.groups.first) {
      const int64_t rows = saved[4 + lane].numel() / in;
      group_rows.push_back(part(stacked, row * in, {rows, in}));
      row += rows;
    }
    const variable_list dz = before_masks(state, gradients);
    for (const size_t lane : c10::irange(lanes)) {
      x[lane] = group_rows[state.groups.group_of[lane]];
      if (dz[lane].defined()) dy[lane] = detail::as_rows(dz[lane]);
    }

    const size_t bias_place = kInputs + lanes;
    variable_list results(bias_place + 2);  // with the bias, and none for the spec
    const auto merged = merge_linear(spec, dy, x, ctx->needs_input_grad(kWeight),
                                     bias.defined() && ctx->needs_input_grad(bias_place));
    // In the parameter's dtype: under autocast the products ran in another one.
    if (merged.weight.defined()) results[kWeight] = merged.weight.to(weight.scalar_type());
    if (merged.bias.defined()) results[bias_place] = merged.bias.to(bias.scalar_type());

    std::vector<size_t> wanted;
    std::vector<at::Tensor> wanted_dy;
    for (const size_t lane : c10::irange(lanes)) {
      if (dy[lane].defined() && ctx->needs_input_grad(kInputs + lane)) {
        wanted.push_back(lane);
        wanted_dy.push_back(dy[lane]);
      }
    }
    if (wanted.empty()) return results;
    const at::Tensor dy_stacked = stack_rows(wanted_dy);
    at::Tensor dx =
        detail::empty_in({spec.memory.workspace}, {dy_stacked.size(0), in}, dy_stacked.options());
    at::mm_out(dx, dy_stacked, weight_used);
    int64_t first = 0;
    for (const size_t lane : wanted) {
      const at::Tensor& input = saved[4 + lane];
      results[kInputs + lane] = part(dx, first, input.sizes()).to(input.scalar_type());
      first += input.numel();
    }
    return results;
  }

  /// The plain derivative by operations that autograd can differentiate again.
  static variable_list differentiable(AutogradContext* ctx, const at::Tensor& weight,
                                      const at::Tensor& bias, const variable_list& inputs,
                                      const variable_list& gradients) {
    const size_t bias_place = kInputs + gradients.size();
    const bool need_bias = bias.defined() && ctx->needs_input_grad(bias_place);
    variable_list results(bias_place + 2);
    const auto add = [](at::Tensor& total, const at::Tensor& term) {
      total = total.defined() ? total + term : term;
    };
    for (const size_t lane : c10::irange(gradients.size())) {
      if (!gradients[lane].defined()) continue;
      const at::Tensor dy = gradients[lane].reshape({-1, weight.size(0)});
      const at::Tensor x = inputs[lane].reshape({-1, weight.size(1)});
      if (ctx->needs_input_grad(kWeight)) add(results[kWeight], dy.t().mm(x));
      if (need_bias) add(results[bias_place], dy.sum(0));
      if (ctx->needs_input_grad(kInputs + lane)) {
        results[kInputs + lane] = dy.mm(weight).view_as(inputs[lane]);
      }
    }
    return results;
  }
};

}  // namespace

std::vector<at::Tensor> linear(at::TensorList inputs, const at::Tensor& weight,
                               const at::Tensor& bias, c10::ArrayRef<size_t> same_as,
                               c10::ArrayRef<merge::Lane> lanes, const merge::Rule& rule,
                               const ReluDropout& after, const Memory& memory) {
  variable_list sources = inputs.vec();
  sources.push_back(weight);
  sources.push_back(bias);
  detail::check_transforms(sources);
  LinearSpec spec{same_as.vec(), lanes.vec(), rule, after, memory, std::nullopt};
  const auto device = weight.device().type();
  if (at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device)) {
    spec.autocast = at::autocast::get_autocast_dtype(device);
  }
  const WithoutAutocast guard(device);
  if (!detail::is_recorded(sources)) {
    return forward_of(spec, inputs, weight, bias, /*masks=*/nullptr).outputs;
  }
  const auto given_bias = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  return LinearFunction::apply(weight, inputs, given_bias, spec);
}

}  // namespace nsn::functional
