#include "nsn/blocks/wrapped.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <ostream>
#include <utility>

#include "blocks/modules.h"
#include "operations/autograd.h"
#include "operations/lanes.h"

namespace nsn {

namespace {

using detail::AutogradContext;
using detail::variable_list;

/// x itself, whose gradient is scaled.
struct ScaleGradient : torch::autograd::Function<ScaleGradient> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, double scale) {
    ctx->set_materialize_grads(false);
    ctx->saved_data["scale"] = scale;
    return x;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const double scale = ctx->saved_data["scale"].toDouble();
    return {gradients[0].defined() ? gradients[0] * scale : gradients[0], {}};
  }
};

at::Tensor scale_gradient(const at::Tensor& x, double scale) {
  return scale == 1.0 || !x.requires_grad() ? x : ScaleGradient::apply(x, scale);
}

/// A clone on the same storages, whose parameters take no part in gradients.
std::shared_ptr<torch::nn::Module> frozen_clone(const torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  auto clone = module.clone();
  const auto from = detail::tensors_of(module), to = detail::tensors_of(*clone);
  for (const size_t i : c10::irange(from.size())) {
    to[i].set_data(from[i].detach());
    to[i].set_requires_grad(false);
  }
  return clone;
}

}  // namespace

WrappedOptions::operator BlockPtr() const { return std::make_shared<const Wrapped>(*this); }

Wrapped::Wrapped(WrappedOptions options) : options_(std::move(options)) {
  TORCH_CHECK_VALUE(options_.module_ != nullptr, "nsn::Wrapped: there is no module. Give one.");
  options_.module_->clone();  // throws where it cannot
}

std::vector<ParameterSpec> Wrapped::parameters() const {
  std::vector<ParameterSpec> result;
  for (const auto& each : options_.module_->named_parameters()) {
    result.push_back({each.key(), each.value().sizes().vec(), /*decays=*/each.value().dim() > 1,
                      /*per_subnetwork=*/false, /*is_buffer=*/false, each.value().scalar_type()});
  }
  for (const auto& each : options_.module_->named_buffers()) {
    result.push_back({each.key(), each.value().sizes().vec(), /*decays=*/false,
                      /*per_subnetwork=*/false, /*is_buffer=*/true, each.value().scalar_type()});
  }
  return result;
}

Fit Wrapped::fit(const Signal& input, const BlockUse& use) const {
  Fit result{use, input, {}, {}, 0, {}};
  Shape shape = kept_shape(input.layout);
  shape.insert(shape.begin(), 1);
  const auto tensors = detail::tensors_of(*options_.module_);
  const auto dtype = input.is_integral ? at::kLong
                     : tensors.empty() ? at::kFloat
                                       : tensors[0].scalar_type();
  at::Tensor y;
  try {
    const at::NoGradGuard no_grad;
    const auto clone = frozen_clone(*options_.module_);
    clone->eval();
    const at::Tensor x = at::zeros(shape, at::TensorOptions().dtype(dtype));
    const at::Tensor held = x;  // as a caller does
    y = call(*clone, held);
  } catch (const c10::Error& error) {
    misfit(std::string("an input that its module takes (it says: ") +
               error.what_without_backtrace() + ")",
           input);
  }
  if (y.dim() < 1 || y.size(0) != 1) misfit("to give a batch back", input);
  result.output = {whole(y.sizes().slice(1).vec()), !at::isFloatingType(y.scalar_type())};
  for (const ParameterSpec& parameter : parameters()) {
    result.slices.push_back(whole(parameter.shape));
  }
  return result;
}

at::Tensor Wrapped::call(torch::nn::Module& module, const at::Tensor& x) const {
  return detail::compute_outside(
      x, [&] { return "nsn::Wrapped: the module of type '" + options_.type_ + "'"; },
      [&](const at::Tensor& input) { return options_.call_(module, input); });
}

Lanes Wrapped::joint(Lanes inputs, const BlockPass& pass) const {
  torch::nn::Module& module = *options_.module_;
  Lanes outputs(std::vector<at::Tensor>(inputs.size()));
  const std::vector<double> coefficients = at::GradMode::is_enabled()
                                               ? pass.rule.coefficients(pass.merge_lanes())
                                               : std::vector<double>(inputs.size(), 1.0);
  detail::check_transforms(inputs);
  std::vector<at::Tensor> scaled;
  std::vector<size_t> together;
  for (const size_t lane : c10::irange(inputs.size())) {
    const double c = coefficients[lane];
    if (c == 0.0) {
      outputs.set(lane, call(*frozen_clone(module), inputs[lane]));
    } else if (options_.row_independent()) {
      scaled.push_back(scale_gradient(inputs[lane], 1.0 / c));
      together.push_back(lane);
    } else {
      outputs.set(lane, scale_gradient(call(module, scale_gradient(inputs[lane], 1.0 / c)), c));
    }
  }
  if (together.empty()) return outputs;
  const at::Tensor y = call(module, scaled.size() == 1 ? scaled[0] : at::cat(scaled));
  int64_t first = 0;
  for (const size_t lane : together) {
    const int64_t rows = inputs[lane].size(0);
    const at::Tensor own = together.size() == 1 ? y : y.narrow(0, first, rows);
    outputs.set(lane, scale_gradient(own, coefficients[lane]));
    first += rows;
  }
  return outputs;
}

void Wrapped::check_rule(const merge::Rule& rule) const {
  if (rule.is_linear()) return;
  throw Misfit(
      "the weights of a wrapped module cannot be split, so that it takes rules alone that are "
      "linear. Give this block a rule of its own, such as merge::mean().");
}

BlockPtr Wrapped::evaluator() const {
  WrappedOptions options = options_;
  options.module_ = frozen_clone(*options_.module_);
  options.module_->eval();
  return options;
}

BlockPtr Wrapped::copy() const {
  WrappedOptions options = options_;
  options.module_ = options_.module_->clone();
  return options;
}

void Wrapped::pretty_print(std::ostream& stream) const { options_.module_->pretty_print(stream); }

}  // namespace nsn
