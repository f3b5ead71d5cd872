#include "blocks/arithmetic.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/convolution.h>
#include <c10/util/irange.h>

#include <utility>

#include "blocks/support.h"
#include "nsn/functional/functional.h"
#include "operations/autocast.h"
#include "operations/lanes.h"

namespace nsn::detail {

namespace {

template <typename Function>
bool is(const Activation& activation) {
  return std::holds_alternative<Function>(activation);
}

/// A bias that the operation itself adds: behind a scale it comes later.
bool adds_bias(const Epilogue& after) { return after.bias && !after.scale; }

/// The weight, and the bias where the operation adds it.
std::vector<Operand> operands_of(const Lowering& to, size_t weight, const Epilogue& after) {
  std::vector<Operand> result{to.operand(weight, "weight")};
  if (adds_bias(after)) result.push_back(to.operand(*after.bias, "bias"));
  return result;
}

/// What is left of an epilogue behind an operation.
Epilogue behind(Epilogue after, bool added_bias) {
  if (added_bias) after.bias.reset();
  return after;
}

}  // namespace

Lanes product(const Lanes& inputs, const BlockPass& pass, size_t weight, const Epilogue& after,
              std::vector<size_t> same_as, const functional::Memory& memory) {
  const auto lanes = shared_lanes(pass, weight, std::move(same_as));
  const bool shares_bias = adds_bias(after) && pass.is_shared(*after.bias);
  const bool fused = !after.scale && (!after.bias || shares_bias);
  const at::Tensor bias = shares_bias ? pass.parameter(*after.bias) : at::Tensor();
  const bool relu = is<torch::enumtype::kReLU>(after.activation);
  if (fused && (relu || is<torch::enumtype::kLinear>(after.activation))) {
    functional::ReluDropout elementwise = dropout_of(after.dropout, pass);
    elementwise.relu = relu;
    return functional::linear(inputs, pass.parameter(weight), bias, lanes, elementwise, memory);
  }
  const functional::Memory inside{memory.workspace};
  if (fused && is<torch::enumtype::kGELU>(after.activation)) {
    return drop(functional::linear_gelu(inputs, pass.parameter(weight), bias, lanes, inside),
                after.dropout, pass);
  }
  auto y = functional::linear(inputs, pass.parameter(weight), bias, lanes, {}, inside);
  return finish(std::move(y), pass, behind(after, shares_bias), -1);
}

Lanes convolution(const Lanes& inputs, const BlockPass& pass, size_t weight,
                  const functional::ConvGeometry& geometry, bool in_groups, const Epilogue& after) {
  const auto& [stride, padding, dilation] = geometry;
  if (!in_groups && !autocast_dtype(inputs[0])) {
    const bool fused = adds_bias(after) && pass.is_shared(*after.bias);
    auto y = functional::convolution(
        inputs, pass.parameter(weight), fused ? pass.parameter(*after.bias) : at::Tensor(),
        shared_lanes(pass, weight, pass.first_of_way(&LanePass::input_way)), geometry);
    return finish(std::move(y), pass, behind(after, fused), 1);
  }
  const bool fused = adds_bias(after);
  const auto weights = pass.share(weight);
  const auto biases = fused ? pass.share(*after.bias) : std::vector<at::Tensor>();
  Lanes y;
  for (const size_t lane : c10::irange(inputs.size())) {
    const std::optional<at::Tensor> bias =
        fused ? std::optional<at::Tensor>(biases[lane]) : std::nullopt;
    y.push_back(at::convolution(inputs[lane], weights[lane], bias, stride, padding, dilation,
                                /*transposed=*/false,
                                /*output_padding=*/std::vector<int64_t>(stride.size(), 0),
                                /*groups=*/inputs[lane].size(1) / weights[lane].size(1)));
  }
  return finish(std::move(y), pass, behind(after, fused), 1);
}

Lanes finish(Lanes y, const BlockPass& pass, const Epilogue& after, int64_t dim) {
  if (after.scale) {
    const auto scales = pass.share(*after.scale);
    for (const size_t lane : c10::irange(y.size())) {
      y.set(lane, y[lane] * along(scales[lane], dim, y[lane]));
    }
  }
  if (after.bias) {
    const auto biases = pass.share(*after.bias);
    for (const size_t lane : c10::irange(y.size())) {
      y.set(lane, y[lane] + along(biases[lane], dim, y[lane]));
    }
  }
  for (const size_t lane : c10::irange(y.size())) {
    y.set(lane, activate(y[lane], after.activation, dim));
  }
  return drop(std::move(y), after.dropout, pass);
}

size_t lower_product(Lowering& to, const char* part, size_t x, size_t weight,
                     const Epilogue& after) {
  const size_t y = to.step(part, primitives::Product{}, {x}, operands_of(to, weight, after));
  return lower_finish(to, y, behind(after, adds_bias(after)), -1);
}

size_t lower_convolution(Lowering& to, size_t x, size_t weight,
                         const functional::ConvGeometry& geometry, const Epilogue& after) {
  const int64_t groups = to.fit().input.layout[0].kept() / to.fit().slices[weight][1].kept();
  const primitives::Convolution convolution{geometry.stride, geometry.padding, geometry.dilation,
                                            groups};
  const size_t y = to.step("conv", convolution, {x}, operands_of(to, weight, after));
  return lower_finish(to, y, behind(after, adds_bias(after)), 1);
}

size_t lower_finish(Lowering& to, size_t y, const Epilogue& after, int64_t dim) {
  std::vector<Operand> operands;
  if (after.scale) operands.push_back(to.operand(*after.scale, "scale"));
  if (after.bias) operands.push_back(to.operand(*after.bias, "bias"));
  if (!operands.empty()) {
    y = to.step("scale", primitives::ScaleAndShift{dim}, {y}, std::move(operands));
  }
  if (is_gated(after.activation)) {
    y = to.step("activation", primitives::Gate{after.activation, dim}, {y});
  } else if (!is<torch::enumtype::kLinear>(after.activation)) {
    y = to.step("activation", primitives::Activate{after.activation}, {y});
  }
  return lower_dropout(to, y, after.dropout);
}

size_t lower_dropout(Lowering& to, size_t y, std::optional<double> standard) {
  if (!standard) return y;
  const double probability = to.fit().use.dropout.value_or(*standard);
  return probability > 0.0 ? to.step("dropout", primitives::Drop{probability}, {y}) : y;
}

}  // namespace nsn::detail
