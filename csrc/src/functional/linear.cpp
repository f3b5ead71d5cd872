#include "nsn/functional/linear.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "functional/linear_forward.h"
#include "functional/linear_gradient.h"
#include "functional/masks.h"
#include "operations/autocast.h"
#include "operations/autograd.h"
#include "operations/kernels_for.h"
#include "operations/lanes.h"
#include "operations/products.h"
#include "operations/workspace.h"
#include "values/regions.h"

namespace nsn::functional {

using detail::AutogradContext;
using detail::bias_of;
using detail::forward_of;
using detail::LaneBuffer;
using detail::LaneRows;
using detail::LinearForward;
using detail::LinearSpec;
using detail::make_spec;
using detail::matrix_of;
using detail::merge_bias;
using detail::merge_weight;
using detail::part;
using detail::Stack;
using detail::stack_rows;
using detail::StackedRows;
using detail::variable_list;

namespace {

/// What a pass leaves for its backward, apart from tensors that autograd watches.
struct LinearState {
  LinearSpec spec;
  detail::Masks masks;
  std::vector<StackedRows> rows;
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
    LinearForward result = forward_of(spec, inputs, weight, bias, &masks);
    // The inputs for the second derivative, the rest for the first; nothing twice.
    variable_list saved{weight, bias, result.weight.is_same(weight) ? at::Tensor() : result.weight};
    saved.insert(saved.end(), inputs.begin(), inputs.end());
    for (const at::Tensor& stacked : result.stacked) {
      const bool is_input = std::any_of(inputs.begin(), inputs.end(), [&](const at::Tensor& each) {
        return stacked.is_alias_of(each);
      });
      saved.push_back(is_input ? at::Tensor() : stacked);
    }
    detail::move_to_saved(masks, saved);
    ctx->save_for_backward(std::move(saved));
    LinearState state{spec, std::move(masks), std::move(result.rows)};
    state.spec.memory.room = nullptr;  // which is over with the call
    detail::keep(ctx, std::move(state));
    return result.outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto& kept = detail::kept<LinearState>(ctx);
    const LinearSpec& spec = kept.spec;
    const variable_list saved = ctx->get_saved_variables();
    const LinearState state{
        spec,
        detail::from_saved(kept.masks, saved, kSavedInputs + gradients.size() + spec.stacks.size()),
        kept.rows};
    const at::Tensor &weight = saved[0], &bias = saved[1];
    const variable_list inputs(saved.begin() + kSavedInputs,
                               saved.begin() + kSavedInputs + gradients.size());
    // Gradients of a pass under autocast are merged in autocast's dtype.
    if (!at::GradMode::is_enabled()) return first_order(ctx, state, saved, gradients);
    const bool is_plain =
        merge::is_plain(spec.rule, spec.lanes, spec.weight.slices, spec.weight.view);
    if (is_plain && !spec.autocast) {
      if (!spec.gelu) {
        return differentiable(ctx, spec, weight, bias, inputs, before_masks(state, gradients));
      }
      // The derivative left by the forward is a constant; here it has to depend on what it is made
      // of.
      variable_list dz(gradients.size());
      for (const size_t lane : c10::irange(gradients.size())) {
        if (!gradients[lane].defined()) continue;
        const at::Tensor own = bias_of(spec, bias, lane);
        at::Tensor z = at::matmul(inputs[lane], matrix_of(spec, weight, lane).t());
        if (own.defined()) z = z + own;
        dz[lane] = at::gelu_backward(gradients[lane], z);
      }
      return differentiable(ctx, spec, weight, bias, inputs, dz);
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
  static constexpr size_t kSavedInputs = 3;

  /// The inputs of each stack, on top of each other, as the forward had them.
  static variable_list stacked_inputs(const LinearState& state, const variable_list& saved,
                                      size_t lanes) {
    const LinearSpec& spec = state.spec;
    variable_list result;
    for (const size_t b : c10::irange(spec.stacks.size())) {
      const at::Tensor& stacked = saved[kSavedInputs + lanes + b];
      if (stacked.defined()) {
        result.push_back(stacked);
        continue;
      }
      Stack stack = spec.stacks[b];
      std::sort(stack.begin(), stack.end(), [&](size_t one, size_t other) {
        return state.rows[one].first < state.rows[other].first;
      });
      variable_list rows;
      for (const size_t source : stack) {
        rows.push_back(detail::as_rows(saved[kSavedInputs + spec.sources[source].lanes[0]]));
      }
      result.push_back(stack_rows(rows));
    }
    return result;
  }

  /// The gradients of the product.
  static variable_list before_masks(const LinearState& state, const variable_list& gradients) {
    if (state.spec.gelu) return before_gelu(state, gradients);
    return state.masks.masks.empty() ? gradients
                                     : detail::relu_dropout_backward(state.masks, gradients);
  }

  /// Each gradient times the derivative that the forward left; into one buffer where it can be, so
  /// that the products find it stacked.
  static variable_list before_gelu(const LinearState& state, const variable_list& gradients) {
    const auto some = std::find_if(gradients.begin(), gradients.end(),
                                   [](const at::Tensor& each) { return each.defined(); });
    const int64_t numel = LaneBuffer::numel_of(gradients);
    if (numel == 0) return gradients;
    LaneBuffer buffer(state.spec.memory, numel, some->options());
    variable_list results(gradients.size());
    for (const size_t lane : c10::irange(gradients.size())) {
      if (!gradients[lane].defined()) continue;
      results[lane] = buffer.next(gradients[lane].sizes());
      at::mul_out(results[lane], gradients[lane], state.masks.outputs[lane]);
    }
    return results;
  }

  static variable_list first_order(AutogradContext* ctx, const LinearState& state,
                                   const variable_list& saved, const variable_list& gradients) {
    const LinearSpec& spec = state.spec;
    const at::Tensor &weight = saved[0], &bias = saved[1];
    const at::Tensor& weight_used = saved[2].defined() ? saved[2] : weight;
    const size_t lanes = gradients.size();
    const variable_list stacked_of = stacked_inputs(state, saved, lanes);
    const variable_list dz = before_masks(state, gradients);
    LaneRows rows{variable_list(lanes), variable_list(lanes)};
    at::TensorOptions options;
    bool any = false;
    for (const size_t lane : c10::irange(lanes)) {
      const StackedRows& own = state.rows[spec.source_of[lane]];
      const at::Tensor& stacked = stacked_of[own.stack];
      const bool is_all = own.count == stacked.size(0);
      // Only a stack of several sources is stacked, and then in one piece.
      rows.x[lane] = is_all
                         ? stacked
                         : part(stacked, own.first * stacked.size(1), {own.count, stacked.size(1)});
      if (!dz[lane].defined()) continue;
      rows.dy[lane] = detail::as_rows(dz[lane]);
      options = rows.dy[lane].options();
      any = true;
    }

    const size_t bias_place = kInputs + lanes;
    variable_list results(bias_place + 2);  // with the bias, and none for the spec
    if (!any) return results;
    // In the parameter's dtype: under autocast the products ran in another one.
    if (ctx->needs_input_grad(kWeight)) {
      results[kWeight] =
          merge_weight(spec, weight.sizes().vec(), rows, options).to(weight.scalar_type());
    }
    if (bias.defined() && ctx->needs_input_grad(bias_place)) {
      results[bias_place] = merge_bias(spec, bias.size(0), rows).to(bias.scalar_type());
    }

    // One product for all lanes of one slice.
    std::vector<bool> done(lanes, false);
    for (const size_t lane : c10::irange(lanes)) {
      const auto wanted = [&](size_t l) {
        return !done[l] && rows.dy[l].defined() && ctx->needs_input_grad(kInputs + l);
      };
      if (!wanted(lane)) continue;
      std::vector<size_t> same;
      std::vector<at::Tensor> dy;
      for (const size_t other : c10::irange(lane, lanes)) {
        if (!wanted(other) || spec.weight.slices[other] != spec.weight.slices[lane]) continue;
        same.push_back(other);
        dy.push_back(rows.dy[other]);
        done[other] = true;
      }
      const at::Tensor stacked = stack_rows(dy);
      at::Tensor dx = detail::empty_in({spec.memory.workspace}, {stacked.size(0), spec.in[lane]},
                                       stacked.options());
      detail::multiply(dx, stacked, matrix_of(spec, weight_used, lane));
      int64_t first = 0;
      for (const size_t each : same) {
        const at::Tensor& input = saved[kSavedInputs + each];
        results[kInputs + each] = part(dx, first, input.sizes()).to(input.scalar_type());
        first += input.numel();
      }
    }
    return results;
  }

  /// The plain derivative by operations that autograd can differentiate again.
  static variable_list differentiable(AutogradContext* ctx, const LinearSpec& spec,
                                      const at::Tensor& weight, const at::Tensor& bias,
                                      const variable_list& inputs, const variable_list& gradients) {
    const size_t bias_place = kInputs + gradients.size();
    const bool need_bias = bias.defined() && ctx->needs_input_grad(bias_place);
    variable_list results(bias_place + 2);
    const auto add = [](at::Tensor& total, const at::Tensor& term) {
      total = total.defined() ? total + term : term;
    };
    for (const size_t lane : c10::irange(gradients.size())) {
      if (!gradients[lane].defined()) continue;
      const at::Tensor dy = gradients[lane].reshape({-1, spec.out[lane]});
      const at::Tensor x = inputs[lane].reshape({-1, spec.in[lane]});
      if (ctx->needs_input_grad(kWeight)) {
        add(results[kWeight],
            detail::pad_to(dy.t().mm(x).reshape(spec.weight.slices[lane]), spec.weight.view)
                .reshape(weight.sizes()));
      }
      if (need_bias) {
        add(results[bias_place],
            detail::pad_to(dy.sum(0).reshape(spec.bias.slices[lane]), spec.bias.view)
                .reshape(bias.sizes()));
      }
      if (ctx->needs_input_grad(kInputs + lane)) {
        results[kInputs + lane] = dy.mm(matrix_of(spec, weight, lane)).view_as(inputs[lane]);
      }
    }
    return results;
  }
};

std::vector<at::Tensor> run(const detail::ProductOperands& operands, LinearSpec spec) {
  const auto& [inputs, weight, bias] = operands;
  variable_list sources = inputs;
  sources.push_back(weight);
  sources.push_back(bias);
  detail::check_transforms(sources);
  const auto device = weight.device().type();
  spec.autocast = detail::autocast_dtype(weight);
  const detail::WithoutAutocast guard(device);
  if (!detail::is_recorded(sources)) {
    return forward_of(spec, inputs, weight, bias, /*masks=*/nullptr).outputs;
  }
  const auto given_bias = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  return LinearFunction::apply(weight, at::TensorList(inputs), given_bias, spec);
}

detail::ProductOperands operands_of(at::TensorList inputs, const at::Tensor& weight,
                                    const at::Tensor& bias, const SharedLanes& lanes) {
  return detail::checked_operands(inputs, weight, bias, lanes, /*dims=*/2, /*channel_dim=*/-1,
                                  "nsn::linear");
}

}  // namespace

std::vector<at::Tensor> linear(at::TensorList inputs, const at::Tensor& weight,
                               const at::Tensor& bias, const SharedLanes& lanes,
                               const ReluDropout& after, const Memory& memory) {
  const auto operands = operands_of(inputs, weight, bias, lanes);
  return run(operands,
             make_spec(weight, lanes, detail::checked_options(after, inputs.size()), memory));
}

std::vector<at::Tensor> linear_gelu(at::TensorList inputs, const at::Tensor& weight,
                                    const at::Tensor& bias, const SharedLanes& lanes,
                                    const Memory& memory) {
  const bool kernel = detail::has_kernels(weight) && !detail::autocast_dtype(weight);
  const auto operands = operands_of(inputs, weight, bias, lanes);
  LinearSpec spec = make_spec(weight, lanes, {}, memory);
  spec.gelu = kernel;
  auto outputs = run(operands, std::move(spec));
  if (!kernel) {
    for (at::Tensor& output : outputs) output = at::gelu(output);
  }
  return outputs;
}

}  // namespace nsn::functional
