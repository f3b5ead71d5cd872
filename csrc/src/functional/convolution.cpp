#include "nsn/functional/convolution.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/zeros.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "functional/sources.h"
#include "operations/autograd.h"
#include "operations/lanes.h"
#include "values/regions.h"

namespace nsn::functional {

using detail::AutogradContext;
using detail::Source;
using detail::variable_list;

namespace {

struct ConvSpec {
  std::vector<merge::Lane> lanes;
  merge::Rule rule;
  ConvGeometry geometry;
  SliceView weight, bias;
  std::vector<Shape> kept;  // extents of each lane's weight
  std::vector<Source> sources;
};

/// In channels-last, also where torch takes one channel for contiguous in any format.
at::Tensor channels_last(const at::Tensor& x) {
  if (x.dim() != 4) return x;
  return x.permute({0, 2, 3, 1}).contiguous().permute({0, 3, 1, 2});
}

at::Tensor weight_of(const ConvSpec& spec, const at::Tensor& weight, size_t lane) {
  return channels_last(
      merge::slice_of_view(weight, spec.weight.view, spec.weight.slices[lane], spec.kept[lane]));
}

at::Tensor bias_of(const ConvSpec& spec, const at::Tensor& bias, size_t lane) {
  return merge::slice_of_view(bias, spec.bias.view, spec.bias.slices[lane], {spec.kept[lane][0]});
}

/// The leading channels of y, in memory of their own.
at::Tensor leading_channels(const at::Tensor& y, int64_t channels) {
  return y.dim() == 4 ? channels_last(y.narrow(1, 0, channels))
                      : y.narrow(1, 0, channels).contiguous();
}

variable_list forward_of(const ConvSpec& spec, at::TensorList inputs, const at::Tensor& weight,
                         const at::Tensor& bias) {
  variable_list outputs(inputs.size());
  const std::vector<int64_t> none(spec.geometry.stride.size(), 0);
  for (const Source& source : spec.sources) {
    const size_t widest = source.widest;
    const auto own_bias =
        bias.defined() ? std::optional<at::Tensor>(bias_of(spec, bias, widest)) : std::nullopt;
    // Torch takes an input of one channel for contiguous, and so the output would be; what follows
    // would run in that format, and each convolution behind bring it to its own.
    const at::Tensor y = channels_last(
        at::convolution(channels_last(inputs[widest]), weight_of(spec, weight, widest), own_bias,
                        spec.geometry.stride, spec.geometry.padding, spec.geometry.dilation,
                        /*transposed=*/false, none, /*groups=*/1));
    for (const size_t lane : source.lanes) {
      // A tensor of its own for each lane, and none a view of another.
      outputs[lane] = spec.kept[lane][0] == y.size(1) ? detail::part(y, 0, y.sizes(), y.strides())
                                                      : leading_channels(y, spec.kept[lane][0]);
    }
  }
  return outputs;
}

struct ConvFunction : torch::autograd::Function<ConvFunction> {
  // Places among forward's tensors, as in linear.cpp.
  static constexpr size_t kWeight = 0, kInputs = 1;

  static variable_list forward(AutogradContext* ctx, const at::Tensor& weight,
                               at::TensorList inputs, const std::optional<at::Tensor>& given_bias,
                               const ConvSpec& spec) {
    ctx->set_materialize_grads(false);
    const at::Tensor bias = given_bias.value_or(at::Tensor());
    detail::keep(ctx, spec);
    variable_list saved{weight, bias};
    saved.insert(saved.end(), inputs.begin(), inputs.end());
    ctx->save_for_backward(std::move(saved));
    return forward_of(spec, inputs, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto& spec = detail::kept<ConvSpec>(ctx);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &weight = saved[0], &bias = saved[1];
    const variable_list inputs(saved.begin() + 2, saved.end());
    if (!at::GradMode::is_enabled()) return first_order(ctx, spec, weight, bias, inputs, gradients);
    if (merge::is_plain(spec.rule, spec.lanes, spec.weight.slices, spec.weight.view)) {
      return differentiable(ctx, spec, weight, bias, inputs, gradients);
    }
    variable_list results;
    {
      const at::NoGradGuard no_grad;
      results = first_order(ctx, spec, weight, bias, inputs, gradients);
    }
    variable_list sources = gradients;
    sources.insert(sources.end(), saved.begin(), saved.end());
    return detail::refuse_second_derivative(detail::why_refused(spec.rule), results, sources);
  }

 private:
  /// The gradients of (x, W, b) of one convolution, those that `wanted` names.
  static std::array<at::Tensor, 3> differentiate(const ConvSpec& spec, const at::Tensor& dy,
                                                 const at::Tensor& x, const at::Tensor& weight,
                                                 std::array<bool, 3> wanted) {
    const std::vector<int64_t> none(spec.geometry.stride.size(), 0);
    const std::array<int64_t, 1> features{weight.size(0)};
    auto [dx, dw, db] = at::convolution_backward(
        dy, channels_last(x), weight, at::OptionalIntArrayRef(features), spec.geometry.stride,
        spec.geometry.padding, spec.geometry.dilation, /*transposed=*/false, none, /*groups=*/1,
        wanted);
    return {dx, dw, db};
  }

  static variable_list first_order(AutogradContext* ctx, const ConvSpec& spec,
                                   const at::Tensor& weight, const at::Tensor& bias,
                                   const variable_list& inputs, const variable_list& gradients) {
    const size_t lanes = gradients.size(), bias_place = kInputs + lanes;
    variable_list results(bias_place + 2);
    if (std::none_of(gradients.begin(), gradients.end(),
                     [](const at::Tensor& each) { return each.defined(); })) {
      return results;
    }
    const bool need_weight = ctx->needs_input_grad(kWeight);
    const bool need_bias = bias.defined() && ctx->needs_input_grad(bias_place);

    // Lanes of one input: their dY, each times its coefficient, are added up before one product.
    // Not where a coefficient changes from region to region for each lane in another way.
    const auto [regions, coefficients, scales_regions] =
        merge::lane_coefficients(spec.rule, spec.lanes, spec.weight.slices, spec.weight.view);
    at::Tensor merged;
    std::vector<at::Tensor> of_lanes(lanes);
    if (coefficients && need_weight) merged = at::zeros(spec.weight.view, weight.options());
    for (const Source& source : spec.sources) {
      std::vector<size_t> counted;
      for (const size_t lane : source.lanes) {
        const bool counts = !coefficients || (*coefficients)[lane] != 0.0;
        if (gradients[lane].defined() && need_weight && counts) counted.push_back(lane);
      }
      if (!coefficients || counted.size() < 2) {
        for (const size_t lane : source.lanes) {
          const bool counts = std::find(counted.begin(), counted.end(), lane) != counted.end();
          if (!gradients[lane].defined()) continue;
          const bool need_x = ctx->needs_input_grad(kInputs + lane);
          if (!need_x && !counts) continue;
          const auto [dx, dw, db] =
              differentiate(spec, gradients[lane], inputs[lane], weight_of(spec, weight, lane),
                            {need_x, counts, false});
          results[kInputs + lane] = dx;
          if (!counts) continue;
          const at::Tensor own = dw.reshape(spec.weight.slices[lane]);
          if (coefficients) {
            merge::leading(merged, spec.weight.slices[lane]).add_(own, (*coefficients)[lane]);
          } else {
            of_lanes[lane] = own;
          }
        }
        continue;
      }
      const size_t widest =
          *std::max_element(counted.begin(), counted.end(),
                            [&](size_t a, size_t b) { return spec.kept[a][0] < spec.kept[b][0]; });
      at::Tensor total = gradients[widest] * (*coefficients)[widest];
      for (const size_t lane : counted) {
        if (lane == widest) continue;
        total.narrow(1, 0, spec.kept[lane][0]).add_(gradients[lane], (*coefficients)[lane]);
      }
      const at::Tensor dw = differentiate(spec, total, inputs[widest],
                                          weight_of(spec, weight, widest), {false, true, false})[1];
      merge::leading(merged, spec.weight.slices[widest])
          .add_(dw.reshape(spec.weight.slices[widest]));
      for (const size_t lane : source.lanes) {
        if (!gradients[lane].defined() || !ctx->needs_input_grad(kInputs + lane)) continue;
        results[kInputs + lane] =
            differentiate(spec, gradients[lane], inputs[lane], weight_of(spec, weight, lane),
                          {true, false, false})[0];
      }
    }
    if (need_weight) {
      if (!coefficients) {
        merged =
            merge::apply(spec.rule, spec.lanes, spec.weight.slices, of_lanes, spec.weight.view);
      } else if (scales_regions) {
        merge::scale_regions(merged, regions);
      }
      results[kWeight] = merged.reshape(weight.sizes());
    }
    if (need_bias) {
      std::vector<at::Tensor> sums(lanes);
      for (const size_t lane : c10::irange(lanes)) {
        if (gradients[lane].defined()) sums[lane] = bias_sum(spec, gradients[lane], lane);
      }
      results[bias_place] =
          merge::apply(spec.rule, spec.lanes, spec.bias.slices, sums, spec.bias.view)
              .reshape(bias.sizes());
    }
    return results;
  }

  /// A lane's gradient of the bias, in the view.
  static at::Tensor bias_sum(const ConvSpec& spec, const at::Tensor& dy, size_t lane) {
    std::vector<int64_t> others{0};
    for (const int64_t dim : c10::irange(2, dy.dim())) others.push_back(dim);
    return dy.sum(others).reshape(spec.bias.slices[lane]);
  }

  /// The plain derivative by operations that autograd can differentiate again.
  static variable_list differentiable(AutogradContext* ctx, const ConvSpec& spec,
                                      const at::Tensor& weight, const at::Tensor& bias,
                                      const variable_list& inputs, const variable_list& gradients) {
    const size_t bias_place = kInputs + gradients.size();
    const bool need_weight = ctx->needs_input_grad(kWeight);
    const bool need_bias = bias.defined() && ctx->needs_input_grad(bias_place);
    variable_list results(bias_place + 2);
    const auto add = [](at::Tensor& total, const at::Tensor& term) {
      total = total.defined() ? total + term : term;
    };
    for (const size_t lane : c10::irange(gradients.size())) {
      if (!gradients[lane].defined()) continue;
      const bool need_x = ctx->needs_input_grad(kInputs + lane);
      if (need_x || need_weight) {
        const auto [dx, dw, db] =
            differentiate(spec, gradients[lane], inputs[lane], weight_of(spec, weight, lane),
                          {need_x, need_weight, false});
        results[kInputs + lane] = dx;
        if (need_weight) {
          add(results[kWeight],
              detail::pad_to(dw.reshape(spec.weight.slices[lane]), spec.weight.view)
                  .reshape(weight.sizes()));
        }
      }
      if (need_bias) {
        add(results[bias_place],
            detail::pad_to(bias_sum(spec, gradients[lane], lane), spec.bias.view)
                .reshape(bias.sizes()));
      }
    }
    return results;
  }
};

}  // namespace

std::vector<at::Tensor> convolution(at::TensorList given, const at::Tensor& given_weight,
                                    const at::Tensor& its_bias, const SharedLanes& lanes,
                                    const ConvGeometry& geometry) {
  const auto rank = static_cast<int64_t>(geometry.stride.size());
  TORCH_CHECK_VALUE(rank >= 1 && geometry.padding.size() == geometry.stride.size() &&
                        geometry.dilation.size() == geometry.stride.size(),
                    "nsn::convolution: stride, padding and dilation must have one number for each "
                    "dimension, but have ",
                    geometry.stride.size(), ", ", geometry.padding.size(), " and ",
                    geometry.dilation.size(), ".");
  const auto [inputs, weight, bias] = detail::checked_operands(
      given, given_weight, its_bias, lanes, rank + 2, /*channel_dim=*/1, "nsn::convolution");
  variable_list tensors = inputs;
  tensors.push_back(weight);
  tensors.push_back(bias);
  detail::check_transforms(tensors);
  auto [weight_view, bias_view, kept] = detail::views_of(weight, lanes, "nsn::convolution");
  const ConvSpec spec{lanes.lanes,
                      lanes.rule,
                      geometry,
                      std::move(weight_view),
                      std::move(bias_view),
                      std::move(kept),
                      detail::sources_of(lanes)};
  if (!detail::is_recorded(tensors)) return forward_of(spec, inputs, weight, bias);
  const auto given_bias = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  return ConvFunction::apply(weight, at::TensorList(inputs), given_bias, spec);
}

}  // namespace nsn::functional
