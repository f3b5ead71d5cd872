#include "nsn/functional/relu_dropout.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "functional/masks.h"
#include "operations/autograd.h"
#include "operations/elementwise.h"
#include "operations/kernels_for.h"
#include "operations/lanes.h"
#include "operations/workspace.h"

namespace nsn::detail {

namespace {

bool is_packed(const at::Tensor& mask) { return mask.scalar_type() == at::kLong; }

at::Tensor apply_bool(const at::Tensor& mask, const at::Tensor& x, double scale) {
  return at::where(mask, x * scale, at::zeros({}, x.options()));
}

}  // namespace

void move_to_saved(Masks& masks, variable_list& saved) {
  for (auto* tensors : {&masks.masks, &masks.outputs}) {
    for (at::Tensor& each : *tensors) saved.push_back(std::move(each));
  }
}

Masks from_saved(const Masks& masks, const variable_list& saved, size_t first) {
  Masks result = masks;
  for (auto* tensors : {&result.masks, &result.outputs}) {
    for (at::Tensor& each : *tensors) each = saved[first++];
  }
  return result;
}

namespace {

/// One tensor a lane, masked; linear in them, so it is its own backward, of any order.
struct ApplyMasks : torch::autograd::Function<ApplyMasks> {
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs, const Masks& masks) {
    ctx->set_materialize_grads(false);
    Masks rest = masks;
    variable_list saved;
    move_to_saved(rest, saved);
    ctx->save_for_backward(std::move(saved));
    keep(ctx, std::move(rest));
    return compute(masks, inputs);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const Masks masks = from_saved(kept<Masks>(ctx), ctx->get_saved_variables(), 0);
    variable_list results = relu_dropout_backward(masks, gradients);
    results.emplace_back();  // for the masks
    return results;
  }

  /// Into one buffer, so that the product before finds its gradients already stacked.
  static variable_list compute(const Masks& masks, at::TensorList inputs) {
    variable_list results;
    if (!is_packed(masks.masks[0])) {
      for (const size_t lane : c10::irange(inputs.size())) {
        results.push_back(apply_bool(masks.masks[lane], inputs[lane], masks.scales[lane]));
      }
      return results;
    }
    LaneBuffer buffer({masks.workspace}, LaneBuffer::numel_of(inputs), inputs[0].options());
    for (const size_t lane : c10::irange(inputs.size())) {
      results.push_back(buffer.next(inputs[lane].sizes()));
      masked_apply(inputs[lane].contiguous(), masks.masks[lane], masks.scales[lane],
                   results.back());
    }
    return results;
  }
};

}  // namespace

functional::ReluDropout checked_options(functional::ReluDropout options, size_t lanes) {
  if (options.dropout.empty()) options.dropout.resize(lanes);
  if (options.same_as.empty()) {
    for (const size_t lane : c10::irange(lanes)) options.same_as.push_back(lane);
  }
  TORCH_CHECK_VALUE(options.dropout.size() == lanes && options.same_as.size() == lanes,
                    "nsn::relu_dropout: dropout and same_as must have one value for each of ",
                    lanes, " lanes, or none, but have ", options.dropout.size(), " and ",
                    options.same_as.size(), ".");
  for (const size_t lane : c10::irange(lanes)) {
    const size_t first = options.same_as[lane];
    TORCH_CHECK_VALUE(first <= lane && options.same_as[first] == first,
                      "nsn::relu_dropout: same_as[", lane,
                      "] must be the first lane of the same activations, but is ", first, ".");
    const double probability = options.dropout[lane].probability;
    TORCH_CHECK_VALUE(probability >= 0.0 && probability <= 1.0,
                      "nsn::relu_dropout: a probability must be from 0 to 1, but is ", probability,
                      ".");
  }
  return options;
}

variable_list relu_dropout_forward(at::TensorList inputs, const at::Tensor& bias,
                                   const functional::ReluDropout& options,
                                   const functional::Memory& memory, bool in_place, Masks* masks) {
  const Groups groups(options.same_as);
  const bool kernels = has_kernels_there(inputs[0]);
  std::optional<LaneBuffer> buffer;
  if (kernels && !in_place) {
    int64_t numel = 0;
    for (const size_t lane : groups.first) numel += inputs[lane].numel();
    buffer.emplace(memory, numel, inputs[0].options());
  }
  variable_list results, kept;
  for (const size_t lane : groups.first) {
    const functional::Dropout& dropout = options.dropout[lane];
    at::Tensor mask;
    if (kernels) {
      const at::Tensor x = in_place ? inputs[lane] : inputs[lane].contiguous();
      results.push_back(in_place ? x : buffer->next(x.sizes()));
      if (masks != nullptr) {
        mask = empty_in({memory.workspace}, {mask_words(x.numel())}, x.options().dtype(at::kLong));
      }
      masked_forward(x, bias, options.relu, dropout, results.back(), mask);
    } else {
      const at::Tensor z = bias.defined() ? inputs[lane] + bias : inputs[lane];
      // The mask is made on the CPU, so that it is the same everywhere.
      mask = functional::dropout_mask(z.sizes(), dropout).to(z.device());
      if (options.relu) mask = mask.logical_and(z.le(0).logical_not());
      results.push_back(apply_bool(mask, z, dropout_scale(dropout)));
    }
    kept.push_back(mask);
  }
  variable_list outputs;
  for (const size_t lane : c10::irange(inputs.size())) {
    const size_t group = groups.group_of[lane];
    const at::Tensor& result = results[group];
    outputs.push_back(groups.first[group] == lane ? result : part(result, 0, result.sizes()));
    if (masks != nullptr) {
      masks->masks.push_back(kept[group]);
      masks->outputs.emplace_back();
      masks->scales.push_back(dropout_scale(options.dropout[lane]));
    }
  }
  if (masks != nullptr) masks->workspace = memory.workspace;
  return outputs;
}

variable_list relu_dropout_backward(const Masks& masks, const variable_list& gradients) {
  Masks active{{}, {}, {}, masks.workspace};  // `outputs` stays empty: masks alone are applied
  variable_list defined;
  std::vector<size_t> masked;
  variable_list results(gradients.size());
  for (const size_t lane : c10::irange(gradients.size())) {
    if (!gradients[lane].defined()) continue;
    if (masks.masks[lane].defined()) {
      active.masks.push_back(masks.masks[lane]);
      active.scales.push_back(masks.scales[lane]);
      defined.push_back(gradients[lane]);
      masked.push_back(lane);
    } else if (masks.outputs[lane].defined()) {
      results[lane] = at::threshold_backward(gradients[lane], masks.outputs[lane], 0);
    } else {
      results[lane] = gradients[lane];
    }
  }
  if (defined.empty()) return results;
  const variable_list applied = is_recorded(defined)
                                    ? ApplyMasks::apply(at::TensorList(defined), active)
                                    : ApplyMasks::compute(active, defined);
  for (const size_t i : c10::irange(masked.size())) results[masked[i]] = applied[i];
  return results;
}

}  // namespace nsn::detail

namespace nsn::functional {

namespace {

struct ReluDropoutFunction : torch::autograd::Function<ReluDropoutFunction> {
  static detail::variable_list forward(detail::AutogradContext* ctx, at::TensorList inputs,
                                       const ReluDropout& options, const Memory& memory) {
    ctx->set_materialize_grads(false);
    detail::Masks masks;
    auto outputs =
        detail::relu_dropout_forward(inputs, {}, options, memory, /*in_place=*/false, &masks);
    detail::variable_list saved;
    detail::move_to_saved(masks, saved);
    ctx->save_for_backward(std::move(saved));
    detail::keep(ctx, std::move(masks));
    return outputs;
  }

  static detail::variable_list backward(detail::AutogradContext* ctx,
                                        const detail::variable_list& gradients) {
    const detail::Masks masks =
        detail::from_saved(detail::kept<detail::Masks>(ctx), ctx->get_saved_variables(), 0);
    auto results = detail::relu_dropout_backward(masks, gradients);
    results.resize(results.size() + 2);  // for the options and the memory
    return results;
  }
};

}  // namespace

bool ReluDropout::is_identity() const {
  return !relu && std::all_of(dropout.begin(), dropout.end(),
                              [](const Dropout& each) { return each.probability <= 0.0; });
}

std::vector<at::Tensor> relu_dropout(at::TensorList given, const ReluDropout& given_options,
                                     const Memory& memory) {
  const ReluDropout options = detail::checked_options(given_options, given.size());
  std::vector<at::Tensor> inputs;
  for (const at::Tensor& each : given) {
    TORCH_CHECK_VALUE(each.defined() && at::isFloatingType(each.scalar_type()),
                      "nsn::relu_dropout: the inputs must be floating tensors, but one ",
                      each.defined() ? std::string("has dtype ") + c10::toString(each.scalar_type())
                                     : std::string("is undefined"),
                      ".");
    inputs.push_back(each.resolve_neg());
  }
  if (inputs.empty()) return inputs;
  detail::check_transforms(inputs);
  if (detail::is_recorded(inputs)) {
    return ReluDropoutFunction::apply(at::TensorList(inputs), options, memory);
  }
  return detail::relu_dropout_forward(inputs, {}, options, memory, /*in_place=*/false, nullptr);
}

at::Tensor dropout_mask(at::IntArrayRef shape, const Dropout& dropout) {
  const int64_t numel = c10::multiply_integers(shape);
  const at::Tensor mask =
      at::empty({detail::mask_words(numel)}, at::TensorOptions().dtype(at::kLong));
  const at::Tensor ones = at::ones({numel});
  detail::masked_forward(ones, {}, /*relu=*/false, dropout, ones, mask);
  return detail::unpack_mask(mask, shape);
}

}  // namespace nsn::functional
