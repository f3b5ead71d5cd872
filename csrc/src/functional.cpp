#include "nsn/functional.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/accumulate.h>
#include <c10/util/irange.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "dropout.h"

namespace nsn::functional {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// ---------------------------------------------------------------------------------------------
// What all operations here need.

/// Whether autograd would record an operation on these tensors. Where it would not, an operation
/// computes directly, which spares inference the graph's overhead.
bool is_recorded(at::TensorList tensors) {
  return at::GradMode::is_enabled() &&
         std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor& tensor) {
           return tensor.defined() && tensor.requires_grad();
         });
}

/// Refuses what cannot pass a C++ autograd function: the transforms of torch.func, and dual tensors
/// of forward-mode AD. Without this the message would name an internal of torch, or the tangent
/// would be lost.
void check_transforms(at::TensorList tensors) {
  TORCH_CHECK(
      !c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode),
      "nsn: the transforms of torch.func (grad, vmap, jvp, ...) do not pass nsn's autograd "
      "functions, but one of them is active. Use torch.autograd.grad, or run the transform over "
      "plain torch modules with the same weights; torch.func.functional_call alone is supported.");
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK(!tensor.defined() || !tensor._fw_grad(/*level=*/0).defined(),
                "nsn: forward-mode automatic differentiation is not supported, but a tensor with a "
                "tangent was given. Use reverse mode: torch.autograd.grad or backward().");
  }
}

/// A tensor on part of `buffer`'s storage that autograd does not take for a view of it.
at::Tensor part(const at::Tensor& buffer, int64_t first_row, at::IntArrayRef sizes) {
  at::Tensor result = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(buffer.storage()),
                                                               buffer.key_set(), buffer.dtype());
  const int64_t row = buffer.dim() > 1 ? buffer.stride(0) : 1;
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_storage_offset(buffer.storage_offset() + first_row * row);
  impl->set_sizes_contiguous(sizes);
  return result;
}

/// `tensor` as a contiguous matrix of its last dimension.
at::Tensor as_rows(const at::Tensor& tensor) {
  return tensor.reshape({-1, tensor.size(-1)}).contiguous();
}

/// The matrices on top of each other. Copies nothing where they already lie one after the other in
/// one storage, which is how these operations lay out what they return.
at::Tensor stack_rows(const std::vector<at::Tensor>& matrices) {
  if (matrices.size() == 1) return matrices[0];
  int64_t rows = 0;
  bool adjacent = true;
  for (const at::Tensor& matrix : matrices) {
    adjacent = adjacent && matrix.is_alias_of(matrices[0]) &&
               matrix.storage_offset() == matrices[0].storage_offset() + rows * matrices[0].size(1);
    rows += matrix.size(0);
  }
  return adjacent ? part(matrices[0], 0, {rows, matrices[0].size(1)}) : at::cat(matrices);
}

/// The first lane of each group that shares a forward, and for each lane the place of its group.
struct Groups {
  explicit Groups(c10::ArrayRef<size_t> same_as) : group_of(same_as.size()) {
    for (const size_t lane : c10::irange(same_as.size())) {
      if (same_as[lane] == lane) {
        group_of[lane] = first.size();
        first.push_back(lane);
      } else {
        group_of[lane] = group_of[same_as[lane]];
      }
    }
  }
  std::vector<size_t> first;
  std::vector<size_t> group_of;
};

/// Whether the merged gradient is the plain derivative: each lane's coefficient is one.
bool is_plain_derivative(const merge::Rule& rule, c10::ArrayRef<merge::Lane> lanes) {
  if (!rule.is_linear()) return false;
  const auto coefficients = rule.coefficients(lanes);
  return std::all_of(coefficients.begin(), coefficients.end(), [](double c) { return c == 1.0; });
}

/// Makes C++ values of any kind part of an autograd context.
template <typename T>
struct Holder : torch::CustomClassHolder {
  explicit Holder(T held) : value(std::move(held)) {}
  T value;
};

template <typename T>
void keep(AutogradContext* ctx, T value) {
  ctx->saved_data["nsn"] =
      c10::IValue::make_capsule(c10::make_intrusive<Holder<T>>(std::move(value)));
}

template <typename T>
const T& kept(AutogradContext* ctx) {
  return static_cast<const Holder<T>&>(*ctx->saved_data["nsn"].toCapsule()).value;
}

/// Ties `results`, computed outside the graph, to `sources`, and throws where somebody
/// differentiates them: a merged gradient is not the gradient of one function. (torch's
/// DelayedError would do it too, with a message that does not say why.)
struct RefuseSecondDerivative : torch::autograd::Function<RefuseSecondDerivative> {
  static variable_list forward(AutogradContext* ctx, const std::string& why, at::TensorList results,
                               at::TensorList sources) {
    static_cast<void>(sources);
    ctx->saved_data["why"] = why;
    variable_list outputs;
    for (const at::Tensor& result : results) {
      outputs.push_back(part(result.contiguous(), 0, result.sizes()));
    }
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    static_cast<void>(gradients);
    TORCH_CHECK(false, ctx->saved_data["why"].toStringRef());
  }
};

/// `results` with each undefined one left as it is and the others refusing a second derivative.
variable_list refuse_second_derivative(const std::string& why, const variable_list& results,
                                       const variable_list& sources) {
  variable_list defined, tracked;
  std::copy_if(results.begin(), results.end(), std::back_inserter(defined),
               [](const at::Tensor& tensor) { return tensor.defined(); });
  std::copy_if(sources.begin(), sources.end(), std::back_inserter(tracked),
               [](const at::Tensor& tensor) { return tensor.defined(); });
  if (defined.empty()) return results;
  const auto tied =
      RefuseSecondDerivative::apply(why, at::TensorList(defined), at::TensorList(tracked));
  variable_list outputs;
  size_t next = 0;
  for (const at::Tensor& result : results) {
    outputs.push_back(result.defined() ? tied[next++] : result);
  }
  return outputs;
}

std::string why_refused(const merge::Rule& rule) {
  return "nsn: the second derivative through merge rule '" + rule.name() +
         "' does not exist: the merged gradient is not the gradient of one function. Use "
         "merge::sum(), run one sub-network alone, or take first derivatives only.";
}

// ---------------------------------------------------------------------------------------------
// share

struct ShareSpec {
  std::vector<merge::Slice> slices;
  std::vector<merge::Lane> lanes;
  merge::Rule rule;
  std::vector<int64_t> shape;
};

at::Tensor leading(at::Tensor tensor, const merge::Slice& slice) {
  for (const size_t dim : c10::irange(slice.size())) {
    tensor = tensor.narrow(static_cast<int64_t>(dim), 0, slice[dim]);
  }
  return tensor;
}

variable_list share_forward(const at::Tensor& parameter, c10::ArrayRef<merge::Slice> slices) {
  variable_list result;
  // Views, not parts: an in-place update between forward and backward is then noticed.
  for (const merge::Slice& slice : slices) {
    at::Tensor lane = leading(parameter, slice);
    result.push_back(lane.is_same(parameter) ? parameter.view_symint(parameter.sym_sizes()) : lane);
  }
  return result;
}

struct ShareFunction : torch::autograd::Function<ShareFunction> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& parameter,
                               const ShareSpec& spec) {
    ctx->set_materialize_grads(false);
    keep(ctx, spec);
    return share_forward(parameter, spec.slices);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto& spec = kept<ShareSpec>(ctx);
    if (!at::GradMode::is_enabled()) {
      return {merge::apply(spec.rule, spec.lanes, spec.slices, gradients, spec.shape), {}};
    }
    if (is_plain_derivative(spec.rule, spec.lanes)) return {padded_sum(spec, gradients), {}};
    at::Tensor merged;
    {
      const at::NoGradGuard no_grad;
      merged = merge::apply(spec.rule, spec.lanes, spec.slices, gradients, spec.shape);
    }
    return {refuse_second_derivative(why_refused(spec.rule), {merged}, gradients)[0], {}};
  }

  /// The sum of the lanes' gradients by operations that autograd can differentiate again.
  static at::Tensor padded_sum(const ShareSpec& spec, const variable_list& gradients) {
    at::Tensor total;
    for (const at::Tensor& gradient : gradients) {
      if (!gradient.defined()) continue;
      std::vector<int64_t> padding;
      for (auto dim = static_cast<int64_t>(spec.shape.size()) - 1; dim >= 0; --dim) {
        padding.push_back(0);
        padding.push_back(spec.shape[dim] - gradient.size(dim));
      }
      const at::Tensor padded = at::constant_pad_nd(gradient, padding);
      total = total.defined() ? total + padded : padded;
    }
    return total;
  }
};

void check_slices(const at::Tensor& parameter, c10::ArrayRef<merge::Slice> slices,
                  c10::ArrayRef<merge::Lane> lanes) {
  TORCH_CHECK_VALUE(parameter.defined(), "nsn::share: the parameter is undefined. Pass a tensor.");
  TORCH_CHECK_VALUE(!slices.empty(),
                    "nsn::share: expected at least one slice, but got none. Give "
                    "one slice for each lane.");
  TORCH_CHECK_VALUE(slices.size() == lanes.size(),
                    "nsn::share: expected one lane for each slice, "
                    "but got ",
                    lanes.size(), " lanes and ", slices.size(), " slices.");
  for (const merge::Slice& slice : slices) {
    bool fits = slice.size() == static_cast<size_t>(parameter.dim());
    for (size_t dim = 0; fits && dim < slice.size(); ++dim) {
      fits = slice[dim] >= 1 && slice[dim] <= parameter.size(static_cast<int64_t>(dim));
    }
    TORCH_CHECK_VALUE(fits, "nsn::share: slice ", at::IntArrayRef(slice),
                      " does not fit the parameter of shape ", parameter.sizes(),
                      ". Give one extent for each dimension, from 1 to the parameter's own.");
  }
}

// ---------------------------------------------------------------------------------------------
// linear

struct LinearSpec {
  std::vector<size_t> same_as;
  std::vector<merge::Lane> lanes;
  merge::Rule rule;
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

struct LinearForward {
  variable_list outputs;  // one a lane
  at::Tensor stacked;     // the inputs of all groups, on top of each other
  at::Tensor weight;      // as multiplied
};

LinearForward linear_forward(const LinearSpec& spec, at::TensorList inputs,
                             const at::Tensor& weight, const at::Tensor& bias) {
  const Groups groups(spec.same_as);
  std::vector<at::Tensor> rows;
  std::vector<int64_t> first_row{0};
  for (const size_t lane : groups.first) {
    rows.push_back(as_rows(cast(inputs[lane], spec.autocast)));
    first_row.push_back(first_row.back() + rows.back().size(0));
  }
  LinearForward result;
  result.stacked = stack_rows(rows);
  result.weight = cast(weight, spec.autocast);
  const at::Tensor product =
      bias.defined() ? at::addmm(cast(bias, spec.autocast), result.stacked, result.weight.t())
                     : at::mm(result.stacked, result.weight.t());
  for (const size_t lane : c10::irange(inputs.size())) {
    std::vector<int64_t> sizes = inputs[lane].sizes().vec();
    sizes.back() = weight.size(0);
    result.outputs.push_back(part(product, first_row[groups.group_of[lane]], sizes));
  }
  return result;
}

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
    result.weight = at::empty({out, in}, some->options());
    at::addmm_out(result.weight, result.weight, dy_stacked.t(), stack_rows(x_counted),
                  /*beta=*/0, /*alpha=*/scale);
  }
  if (need_bias) {
    result.bias = at::sum(dy_stacked, {0});
    if (scale != 1.0) result.bias.mul_(scale);
  }
  return result;
}

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  // Places among forward's tensors: the weight, one input a lane, then the bias, which has an edge
  // in the graph only where there is one.
  static constexpr size_t kWeight = 0, kInputs = 1;

  static variable_list forward(AutogradContext* ctx, const at::Tensor& weight,
                               at::TensorList inputs, const std::optional<at::Tensor>& given_bias,
                               const LinearSpec& spec) {
    ctx->set_materialize_grads(false);
    keep(ctx, spec);
    const at::Tensor bias = given_bias.value_or(at::Tensor());
    LinearForward result = linear_forward(spec, inputs, weight, bias);
    // The inputs for the second derivative, the rest for the first.
    variable_list saved{weight, bias, result.weight, result.stacked};
    saved.insert(saved.end(), inputs.begin(), inputs.end());
    ctx->save_for_backward(std::move(saved));
    return result.outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto& spec = kept<LinearSpec>(ctx);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &weight = saved[0], &bias = saved[1];
    const variable_list inputs(saved.begin() + 4, saved.end());
    const WithoutAutocast guard(weight.device().type());

    if (!at::GradMode::is_enabled()) return first_order(ctx, spec, saved, gradients);
    if (is_plain_derivative(spec.rule, spec.lanes) && !spec.autocast) {
      return differentiable(ctx, weight, bias, inputs, gradients);
    }
    variable_list results;
    {
      const at::NoGradGuard no_grad;
      results = first_order(ctx, spec, saved, gradients);
    }
    variable_list sources = gradients;
    sources.insert(sources.end(), inputs.begin(), inputs.end());
    sources.push_back(weight);
    sources.push_back(bias);
    const std::string why =
        spec.autocast
            ? "nsn: the second derivative under autocast is not supported. Leave autocast "
              "for the passes that are differentiated twice."
            : why_refused(spec.rule);
    return refuse_second_derivative(why, results, sources);
  }

 private:
  static variable_list first_order(AutogradContext* ctx, const LinearSpec& spec,
                                   const variable_list& saved, const variable_list& gradients) {
    const at::Tensor &weight = saved[0], &bias = saved[1], &weight_used = saved[2],
                     &stacked = saved[3];
    const size_t lanes = gradients.size();
    const Groups groups(spec.same_as);
    std::vector<at::Tensor> group_rows, x(lanes), dy(lanes);
    int64_t row = 0;
    for (const size_t lane : groups.first) {
      const at::Tensor& input = saved[4 + lane];
      const int64_t rows = c10::multiply_integers(input.sizes().slice(0, input.dim() - 1));
      group_rows.push_back(part(stacked, row, {rows, stacked.size(1)}));
      row += rows;
    }
    for (const size_t lane : c10::irange(lanes)) {
      x[lane] = group_rows[groups.group_of[lane]];
      if (gradients[lane].defined()) dy[lane] = as_rows(gradients[lane]);
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
    const at::Tensor dx = at::mm(stack_rows(wanted_dy), weight_used);
    int64_t first = 0;
    for (const size_t lane : wanted) {
      const at::Tensor& input = saved[4 + lane];
      results[kInputs + lane] = part(dx, first, input.sizes()).to(input.scalar_type());
      first += dy[lane].size(0);
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

// ---------------------------------------------------------------------------------------------
// relu_dropout

/// One mask and scale a group of lanes, applied to one tensor a lane. Linear in its inputs, so it
/// is its own backward, of any order.
struct MaskSpec {
  std::vector<at::Tensor> masks;  // one a lane; lanes of one group share theirs
  std::vector<double> scales;
};

struct ApplyMask : torch::autograd::Function<ApplyMask> {
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs, const MaskSpec& spec) {
    ctx->set_materialize_grads(false);
    keep(ctx, spec);
    return compute(spec, inputs);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto& spec = kept<MaskSpec>(ctx);
    return differentiate(spec, gradients);
  }

  /// The masked gradients of the lanes that have one, and nothing for the spec.
  static variable_list differentiate(const MaskSpec& spec, const variable_list& gradients) {
    MaskSpec active;
    variable_list defined;
    for (const size_t lane : c10::irange(gradients.size())) {
      if (!gradients[lane].defined()) continue;
      active.masks.push_back(spec.masks[lane]);
      active.scales.push_back(spec.scales[lane]);
      defined.push_back(gradients[lane]);
    }
    variable_list results(gradients.size() + 1);
    if (defined.empty()) return results;
    const auto masked =
        is_recorded(defined) ? apply(at::TensorList(defined), active) : compute(active, defined);
    size_t next = 0;
    for (const size_t lane : c10::irange(gradients.size())) {
      if (gradients[lane].defined()) results[lane] = masked[next++];
    }
    return results;
  }

  /// Into one buffer, so that the linear operation before finds its gradients already stacked.
  static variable_list compute(const MaskSpec& spec, at::TensorList inputs) {
    int64_t numel = 0;
    for (const at::Tensor& input : inputs) numel += input.numel();
    const at::Tensor buffer = at::empty({numel}, inputs[0].options());
    variable_list results;
    int64_t first = 0;
    for (const size_t lane : c10::irange(inputs.size())) {
      results.push_back(part(buffer, first, inputs[lane].sizes()));
      detail::masked_apply(inputs[lane].contiguous(), spec.masks[lane], spec.scales[lane],
                           results.back());
      first += inputs[lane].numel();
    }
    return results;
  }
};

struct ReluDropoutSpec {
  bool relu;
  std::vector<Dropout> dropout;
  std::vector<size_t> same_as;
};

/// The outputs; the masks and scales go to `spec` for the backward.
variable_list relu_dropout_forward(const ReluDropoutSpec& options, at::TensorList inputs,
                                   MaskSpec& spec) {
  const Groups groups(options.same_as);
  int64_t numel = 0;
  for (const size_t lane : groups.first) numel += inputs[lane].numel();
  const at::Tensor buffer = at::empty({numel}, inputs[0].options());
  std::vector<at::Tensor> masks;
  std::vector<int64_t> firsts{0};
  for (const size_t lane : groups.first) {
    const at::Tensor& input = inputs[lane];
    masks.push_back(
        at::empty({detail::mask_words(input.numel())}, input.options().dtype(at::kLong)));
    detail::masked_forward(input.contiguous(), options.relu, options.dropout[lane],
                           part(buffer, firsts.back(), input.sizes()), masks.back());
    firsts.push_back(firsts.back() + input.numel());
  }
  variable_list outputs;
  for (const size_t lane : c10::irange(inputs.size())) {
    const size_t group = groups.group_of[lane];
    spec.masks.push_back(masks[group]);
    spec.scales.push_back(detail::dropout_scale(options.dropout[lane]));
    outputs.push_back(part(buffer, firsts[group], inputs[lane].sizes()));
  }
  return outputs;
}

struct ReluDropout : torch::autograd::Function<ReluDropout> {
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs,
                               const ReluDropoutSpec& options) {
    ctx->set_materialize_grads(false);
    MaskSpec spec;
    variable_list outputs = relu_dropout_forward(options, inputs, spec);
    keep(ctx, std::move(spec));
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    return ApplyMask::differentiate(kept<MaskSpec>(ctx), gradients);
  }
};

}  // namespace

std::vector<at::Tensor> share(const at::Tensor& parameter, c10::ArrayRef<merge::Slice> slices,
                              const merge::Rule& rule, c10::ArrayRef<merge::Lane> lanes) {
  check_slices(parameter, slices, lanes);
  check_transforms(parameter);
  if (!is_recorded(parameter)) return share_forward(parameter, slices);
  return ShareFunction::apply(parameter,
                              ShareSpec{slices.vec(), lanes.vec(), rule, parameter.sizes().vec()});
}

std::vector<at::Tensor> linear(at::TensorList inputs, const at::Tensor& weight,
                               const at::Tensor& bias, c10::ArrayRef<size_t> same_as,
                               c10::ArrayRef<merge::Lane> lanes, const merge::Rule& rule) {
  variable_list sources = inputs.vec();
  sources.push_back(weight);
  sources.push_back(bias);
  check_transforms(sources);
  LinearSpec spec{same_as.vec(), lanes.vec(), rule, std::nullopt};
  const auto device = weight.device().type();
  if (at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device)) {
    spec.autocast = at::autocast::get_autocast_dtype(device);
  }
  const WithoutAutocast guard(device);
  if (!is_recorded(sources)) return linear_forward(spec, inputs, weight, bias).outputs;
  const auto given_bias = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  return LinearFunction::apply(weight, inputs, given_bias, spec);
}

std::vector<at::Tensor> relu_dropout(at::TensorList inputs, bool relu,
                                     c10::ArrayRef<Dropout> dropout,
                                     c10::ArrayRef<size_t> same_as) {
  check_transforms(inputs);
  const bool on_cpu = std::all_of(inputs.begin(), inputs.end(),
                                  [](const at::Tensor& input) { return input.device().is_cpu(); });
  if (!on_cpu) return relu_dropout_plain(inputs, relu, dropout);
  const ReluDropoutSpec options{relu, dropout.vec(), same_as.vec()};
  if (!is_recorded(inputs)) {
    MaskSpec unused;
    return relu_dropout_forward(options, inputs, unused);
  }
  return ReluDropout::apply(inputs, options);
}

std::vector<at::Tensor> relu_dropout_plain(at::TensorList inputs, bool relu,
                                           c10::ArrayRef<Dropout> dropout) {
  std::vector<at::Tensor> outputs;
  for (const size_t lane : c10::irange(inputs.size())) {
    at::Tensor output = relu ? at::relu(inputs[lane]) : inputs[lane];
    if (dropout[lane].probability > 0.0) {
      const at::Tensor mask = dropout_mask(output.sizes(), dropout[lane]).to(output.device());
      output = at::where(mask, output * detail::dropout_scale(dropout[lane]),
                         at::zeros({}, output.options()));
    }
    outputs.push_back(output);
  }
  return outputs;
}

}  // namespace nsn::functional

namespace nsn {

std::vector<at::Tensor> share(const at::Tensor& parameter, const std::vector<merge::Slice>& slices,
                              const merge::Rule& rule, const std::vector<std::string>& names) {
  TORCH_CHECK_VALUE(names.empty() || names.size() == slices.size(),
                    "nsn::share: expected one name for each slice, but got ", names.size(),
                    " names and ", slices.size(), " slices. Name all lanes or none.");
  std::vector<size_t> by_size(slices.size());
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(), [&](size_t a, size_t b) {
    return c10::multiply_integers(slices[a]) < c10::multiply_integers(slices[b]);
  });
  std::vector<merge::Lane> lanes(slices.size());
  for (const size_t rank : c10::irange(by_size.size())) {
    const size_t lane = by_size[rank];
    lanes[lane] = {names.empty() ? std::to_string(lane) : names[lane], static_cast<int64_t>(rank)};
  }
  return functional::share(parameter, slices, rule, lanes);
}

}  // namespace nsn
