#include "nsn/blocks/dense.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tanh.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>
#include <utility>

#include "mix.h"
#include "nsn/functional.h"

namespace nsn {

namespace {

using torch::enumtype::kGELU;
using torch::enumtype::kLinear;
using torch::enumtype::kReLU;
using torch::enumtype::kSigmoid;
using torch::enumtype::kSiLU;
using torch::enumtype::kTanh;

// In the order of the variant's alternatives.
constexpr std::array<const char*, std::variant_size_v<Activation>> kActivationNames = {
    "linear", "relu", "gelu", "silu", "sigmoid", "tanh"};
constexpr std::array<const char*, 2> kWeightInitNames = {"kaiming_uniform", "xavier_uniform"};

template <size_t n>
size_t find_name(const std::array<const char*, n>& names, const std::string& name,
                 const char* what) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    std::string known;
    for (const char* each : names) known += (known.empty() ? "" : ", ") + std::string(each);
    TORCH_CHECK_VALUE(false, "nsn::Dense: unknown ", what, " '", name, "'. Use one of ", known,
                      ".");
  }
  return static_cast<size_t>(found - names.begin());
}

at::Tensor activate(const at::Tensor& x, const Activation& activation) {
  struct Visitor {
    const at::Tensor& x;
    at::Tensor operator()(const kLinear& /*unused*/) const { return x; }
    at::Tensor operator()(const kReLU& /*unused*/) const { return at::relu(x); }
    at::Tensor operator()(const kGELU& /*unused*/) const { return at::gelu(x); }
    at::Tensor operator()(const kSiLU& /*unused*/) const { return at::silu(x); }
    at::Tensor operator()(const kSigmoid& /*unused*/) const { return at::sigmoid(x); }
    at::Tensor operator()(const kTanh& /*unused*/) const { return at::tanh(x); }
  };
  return std::visit(Visitor{x}, activation);
}

functional::Dropout dropout_of(const DenseOptions& options, const LanePass& lane,
                               const BlockPass& pass) {
  if (!pass.training) return {};
  return {lane.use.dropout.value_or(options.dropout()), detail::mix(pass.seed, lane.output_way)};
}

/// For each lane the first one of the same way, itself if there is none before it.
std::vector<size_t> first_of_way(const BlockPass& pass, size_t LanePass::* way) {
  std::vector<size_t> result;
  for (const size_t lane : c10::irange(pass.lanes.size())) {
    size_t first = 0;
    while (pass.lanes[first].*way != pass.lanes[lane].*way) ++first;
    result.push_back(first);
  }
  return result;
}

}  // namespace

DenseOptions::operator BlockPtr() const { return std::make_shared<const Dense>(*this); }

Dense::Dense(DenseOptions options) : options_(std::move(options)) {
  TORCH_CHECK_VALUE(options_.in_features() >= 1,
                    "nsn::Dense: in_features must be at least 1, but "
                    "got ",
                    options_.in_features(), ". Give the last extent of the input.");
  TORCH_CHECK_VALUE(options_.out_features() >= 1,
                    "nsn::Dense: out_features must be at least 1, "
                    "but got ",
                    options_.out_features(), ". Give the last extent of the output.");
  TORCH_CHECK_VALUE(options_.dropout() >= 0.0 && options_.dropout() <= 1.0,
                    "nsn::Dense: dropout must be a probability from 0 to 1, but got ",
                    options_.dropout(), ".");
  TORCH_CHECK_VALUE(!options_.bias_init() || options_.bias(), "nsn::Dense: bias_init is ",
                    *options_.bias_init(), ", but bias is false. Leave out bias_init.");
  TORCH_CHECK_VALUE(!options_.bias_init() || std::isfinite(*options_.bias_init()),
                    "nsn::Dense: bias_init must be finite, but got ", *options_.bias_init(), ".");
  checked_numel({options_.out_features(), options_.in_features()}, "the weight of Dense");
}

std::string Dense::options_json() const {
  nlohmann::ordered_json json{{"in_features", options_.in_features()},
                              {"out_features", options_.out_features()},
                              {"bias", options_.bias()},
                              {"activation", to_string(options_.activation())},
                              {"dropout", options_.dropout()},
                              {"weight_init", to_string(options_.weight_init())}};
  if (options_.bias_init()) json["bias_init"] = *options_.bias_init();
  return json.dump();
}

std::vector<ParameterSpec> Dense::parameters() const {
  std::vector<ParameterSpec> result{{"weight", {options_.out_features(), options_.in_features()}}};
  if (options_.bias()) result.push_back({"bias", {options_.out_features()}, /*decays=*/false});
  return result;
}

std::optional<Shape> Dense::output_shape(const Shape& input) const {
  if (input.empty() || input.back() != options_.in_features()) return std::nullopt;
  Shape output = input;
  output.back() = options_.out_features();
  return output;
}

std::string Dense::expected_input() const {
  return "(*, " + std::to_string(options_.in_features()) + "), its in_features";
}

at::Tensor Dense::forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                          const BlockPass& pass) const {
  const at::Tensor z = at::linear(x, parameters[0], options_.bias() ? parameters[1] : at::Tensor());
  const at::Tensor y = activate(z, options_.activation());
  const functional::ReluDropout drop{false, {dropout_of(options_, lane, pass)}, {0}};
  return drop.is_identity() ? y : functional::relu_dropout(y, drop)[0];
}

std::vector<at::Tensor> Dense::joint(at::TensorList inputs, at::TensorList parameters,
                                     const BlockPass& pass) const {
  std::vector<merge::Lane> lanes;
  const bool relu = std::holds_alternative<kReLU>(options_.activation());
  functional::ReluDropout after{relu, {}, first_of_way(pass, &LanePass::output_way)};
  for (const LanePass& lane : pass.lanes) {
    lanes.push_back(lane.lane);
    after.dropout.push_back(dropout_of(options_, lane, pass));
  }
  const at::Tensor bias = options_.bias() ? parameters[1] : at::Tensor();
  const auto same_as = first_of_way(pass, &LanePass::input_way);
  if (relu || std::holds_alternative<kLinear>(options_.activation())) {
    return functional::linear(inputs, parameters[0], bias, same_as, lanes, pass.rule, after,
                              pass.memory);
  }
  auto outputs = functional::linear(inputs, parameters[0], bias, same_as, lanes, pass.rule, {},
                                    {pass.memory.workspace});
  for (at::Tensor& output : outputs) output = activate(output, options_.activation());
  return after.is_identity() ? outputs : functional::relu_dropout(outputs, after, pass.memory);
}

void Dense::initialize(at::TensorList parameters) const {
  const at::NoGradGuard no_grad;
  const auto in = static_cast<double>(options_.in_features());
  const auto out = static_cast<double>(options_.out_features());
  const bool xavier = options_.weight_init() == WeightInit::kXavierUniform;
  const double weight_bound = xavier ? std::sqrt(6.0 / (in + out)) : 1.0 / std::sqrt(in);
  parameters[0].uniform_(-weight_bound, weight_bound);
  if (!options_.bias()) return;
  if (options_.bias_init()) {
    parameters[1].fill_(*options_.bias_init());
  } else {
    parameters[1].uniform_(-1.0 / std::sqrt(in), 1.0 / std::sqrt(in));
  }
}

void Dense::pretty_print(std::ostream& stream) const {
  stream << options_.in_features() << ", " << options_.out_features();
  if (!options_.bias()) stream << ", bias=false";
  if (!std::holds_alternative<kLinear>(options_.activation())) {
    stream << ", activation=" << to_string(options_.activation());
  }
  if (options_.dropout() > 0.0) stream << ", dropout=" << options_.dropout();
}

std::string to_string(const Activation& activation) { return kActivationNames[activation.index()]; }

std::string to_string(WeightInit init) { return kWeightInitNames[static_cast<size_t>(init)]; }

Activation activation_from_string(const std::string& name) {
  static const std::array<Activation, kActivationNames.size()> all = {
      kLinear(), kReLU(), kGELU(), kSiLU(), kSigmoid(), kTanh()};
  return all[find_name(kActivationNames, name, "activation")];
}

WeightInit weight_init_from_string(const std::string& name) {
  return static_cast<WeightInit>(find_name(kWeightInitNames, name, "weight_init"));
}

}  // namespace nsn
