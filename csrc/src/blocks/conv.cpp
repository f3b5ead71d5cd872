#include "nsn/blocks/conv.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv_transpose2d.h>
#include <c10/util/irange.h>

#include <ostream>
#include <utility>

#include "blocks/arithmetic.h"
#include "blocks/builtin.h"
#include "blocks/options.h"
#include "blocks/support.h"

namespace nsn {

template <typename Options>
static void list_kernel(const Options& options, const Options& defaults, const char* padding,
                        detail::OptionVisitor& visitor) {
  visitor.required("in_channels", options.in_channels(), detail::doc::kInChannels,
                   detail::at_least(1));
  visitor.required("out_channels", options.out_channels(), "the number of channels of the output",
                   detail::at_least(1));
  visitor.required("kernel_size", options.kernel_size(), detail::doc::kKernelSize,
                   detail::at_least(1));
  visitor.optional("stride", options.stride(), defaults.stride(),
                   "the step from one position of the kernel to the next", detail::at_least(1));
  visitor.optional("padding", options.padding(), defaults.padding(), padding, detail::at_least(0));
}

template <typename Options>
static void list_dilation(const Options& options, const Options& defaults,
                          detail::OptionVisitor& visitor) {
  visitor.optional("dilation", options.dilation(), defaults.dilation(),
                   "the step from one element of the kernel to the next", detail::at_least(1));
}

// Found by the type of the options, which an unnamed namespace would prevent.
template <size_t D>
static void list_options(const ConvOptions<D>& options, const ConvOptions<D>& defaults,
                         detail::OptionVisitor& visitor) {
  list_kernel(options, defaults, detail::doc::kPadding, visitor);
  list_dilation(options, defaults, visitor);
  visitor.optional("groups", options.groups(), defaults.groups(),
                   "the number of groups of channels, which do not see one another",
                   detail::at_least(1));
  if constexpr (D == 1) {
    visitor.optional("causal", options.causal(), defaults.causal(),
                     "whether to pad (`kernel_size` - 1) * `dilation` zeros in front and none "
                     "behind, so that a position sees none after it; `padding` must be 0");
  }
  detail::list_layer(options, defaults, visitor);
}

static void list_options(const ConvTranspose2dOptions& options,
                         const ConvTranspose2dOptions& defaults, detail::OptionVisitor& visitor) {
  list_kernel(options, defaults,
              "the number of positions to take off the output at each end, as torch counts them",
              visitor);
  visitor.optional("output_padding", options.output_padding(), defaults.output_padding(),
                   "the number of positions to add to the output at the far end",
                   detail::at_least(0));
  list_dilation(options, defaults, visitor);
  visitor.optional("bias", options.bias(), defaults.bias(), detail::doc::kBias);
  visitor.optional("activation", options.activation(), defaults.activation(), "the activation",
                   detail::not_gated());
  visitor.optional("dropout", options.dropout(), defaults.dropout(), detail::doc::kDropout,
                   detail::probability());
  visitor.optional("per_subnetwork", options.per_subnetwork(), defaults.per_subnetwork(),
                   detail::doc::kPerSubnetwork, detail::parts({{"bias", options.bias()}}));
}

namespace {

template <size_t D>
const ConvOptions<D> kConvDefaults(1, 1, 1);
const ConvTranspose2dOptions kTransposeDefaults(1, 1, 1);

template <size_t D>
std::vector<int64_t> extents(const torch::ExpandingArray<D>& array) {
  return {array->begin(), array->end()};
}

template <size_t D>
functional::ConvGeometry geometry_of(const ConvOptions<D>& o) {
  return {extents(o.stride()), extents(o.padding()), extents(o.dilation())};
}

/// What stands in front of a causal one's input.
template <size_t D>
int64_t causal_padding(const ConvOptions<D>& o) {
  return (*o.dilation())[0] * ((*o.kernel_size())[0] - 1);
}

/// Behind the weight stand the scale and the bias, where there are some.
template <size_t D>
detail::Epilogue epilogue_of(const ConvOptions<D>& o) {
  detail::Epilogue result{std::nullopt, std::nullopt, o.activation(), o.dropout()};
  if (o.scale()) result.scale = 1;
  if (o.bias()) result.bias = o.scale() ? 2 : 1;
  return result;
}

}  // namespace

template <size_t D>
ConvOptions<D>::operator BlockPtr() const {
  return std::make_shared<const Conv<D>>(*this);
}

template <size_t D>
Conv<D>::Conv(ConvOptions<D> options) : options_(std::move(options)) {
  const ConvOptions<D>& o = options_;
  detail::check_options(type(), o);
  TORCH_CHECK_VALUE(o.in_channels() % o.groups() == 0 && o.out_channels() % o.groups() == 0,
                    "nsn::", type(), ": groups must divide in_channels and out_channels, but ",
                    o.groups(), " does not divide ", o.in_channels(), " and ", o.out_channels(),
                    ". Change one of them.");
  TORCH_CHECK_VALUE(!o.causal() || (D == 1 && (*o.padding())[0] == 0), "nsn::", type(),
                    ": causal pads by itself, in front and in one dimension alone, but padding is ",
                    (*o.padding())[0], ". Leave out padding.");
  TORCH_CHECK_VALUE(o.groups() == 1 || !is_gated(o.activation()), "nsn::", type(),
                    ": a gated activation would take value and gate from different groups. Use "
                    "groups = 1, or an activation that is not gated.");
  TORCH_CHECK_VALUE(!o.bias_init() || o.bias(), "nsn::", type(), ": bias_init is ", *o.bias_init(),
                    ", but bias is false. Leave out bias_init.");
}

template <size_t D>
bool Conv<D>::is_depthwise() const {
  return options_.groups() > 1 && options_.groups() == options_.in_channels() &&
         options_.groups() == options_.out_channels();
}

template <size_t D>
std::string Conv<D>::options_json() const {
  return detail::write_options(options_, kConvDefaults<D>);
}

template <size_t D>
std::vector<ParameterSpec> Conv<D>::parameters() const {
  const ConvOptions<D>& o = options_;
  const int64_t rows = (is_gated(o.activation()) ? 2 : 1) * o.out_channels();
  Shape weight{rows, o.in_channels() / o.groups()};
  weight.insert(weight.end(), o.kernel_size()->begin(), o.kernel_size()->end());
  std::vector<ParameterSpec> result{{"weight", std::move(weight)}};
  if (o.scale()) result.push_back({"scale", {rows}, false, o.per_subnetwork().count("scale") > 0});
  if (o.bias()) result.push_back({"bias", {rows}, false, o.per_subnetwork().count("bias") > 0});
  return result;
}

template <size_t D>
std::vector<Dimension> Conv<D>::dimensions() const {
  if (is_depthwise()) return {};
  return {{"out", options_.out_channels(), options_.groups(), 0}};
}

template <size_t D>
Fit Conv<D>::fit(const Signal& input, const BlockUse& use) const {
  const ConvOptions<D>& o = options_;
  const std::string shape = D == 1 ? ", L)" : ", H, W)";
  const auto in =
      input.layout.size() == D + 1 ? detail::reads(input.layout[0], o.in_channels()) : std::nullopt;
  if (!in || input.is_integral) {
    misfit("floating (" + std::to_string(o.in_channels()) + shape + ", its in_channels", input);
  }
  Fit result{use, input, {}, {}, 0, {}};
  Axis out(o.out_channels(), use.width_of("out", o.out_channels())), per_group = *in;
  if (is_depthwise()) {
    out = *in;
    per_group = Axis(1);
  } else if (o.groups() > 1) {
    const auto cut = detail::cut_groups(*in, o.groups());
    if (!cut) {
      misfit("an input of whole groups, or of the leading part of each, of its " +
                 std::to_string(o.groups()) + " groups of " +
                 std::to_string(o.in_channels() / o.groups()) + " channels",
             input);
    }
    const int64_t full = o.out_channels() / o.groups(), kept = out.kept() / o.groups();
    out = Axis({{o.groups(), cut->groups}, {full, kept}});
    per_group = Axis(o.in_channels() / o.groups(), cut->channels);
  }
  const Axis rows = detail::rows_axis(out, is_gated(o.activation()));
  Layout weight{rows, per_group};
  result.output.layout.push_back(out);
  int64_t positions = 1, kernel = 1;
  for (size_t d = 0; d < D; ++d) {
    const int64_t reach = (*o.dilation())[d] * ((*o.kernel_size())[d] - 1);
    const int64_t padding = o.causal() ? reach : 2 * (*o.padding())[d];
    const int64_t room = input.layout[d + 1].kept() + padding - reach - 1;
    if (room < 0) misfit("positions for its kernel of " + std::to_string(reach + 1), input);
    const int64_t extent = room / (*o.stride())[d] + 1;
    result.output.layout.emplace_back(extent);
    weight.emplace_back((*o.kernel_size())[d]);
    positions = detail::saturating_product({positions, extent});
    kernel *= (*o.kernel_size())[d];
  }
  result.slices.push_back(std::move(weight));
  for (size_t i = 1; i < parameters().size(); ++i) result.slices.push_back({rows});
  result.flops = detail::saturating_product({2, rows.kept(), per_group.kept(), kernel, positions});
  return result;
}

template <size_t D>
Lanes Conv<D>::joint(Lanes inputs, const BlockPass& pass) const {
  const ConvOptions<D>& o = options_;
  const auto run = [&](const Lanes& x) {
    return detail::convolution(x, pass, detail::kWeight, geometry_of(o), o.groups() > 1,
                               epilogue_of(o));
  };
  if (!o.causal()) return run(inputs);
  Lanes padded;
  for (const at::Tensor& each : inputs) {
    padded.push_back(at::constant_pad_nd(each, {causal_padding(o), 0}));
  }
  return run(padded);
}

template <size_t D>
size_t Conv<D>::lower(Lowering& to, size_t x) const {
  if (options_.causal()) x = to.step("pad", primitives::Pad{causal_padding(options_)}, {x});
  return detail::lower_convolution(to, x, detail::kWeight, geometry_of(options_),
                                   epilogue_of(options_));
}

template <size_t D>
BlockPtr Conv<D>::narrowed(const Fit& fit) const {
  ConvOptions<D> options = options_;
  options.in_channels(fit.input.layout[0].kept()).out_channels(fit.output.layout[0].kept());
  options.groups(options.in_channels() / fit.slices[detail::kWeight][1].kept());
  options.dropout(fit.use.dropout.value_or(options.dropout())).per_subnetwork({});
  return options;
}

template <size_t D>
void Conv<D>::initialize(at::TensorList parameters) const {
  const ConvOptions<D>& o = options_;
  int64_t kernel = 1;
  for (const int64_t extent : *o.kernel_size()) kernel *= extent;
  const at::Tensor scale = o.scale() ? parameters[1] : at::Tensor();
  const at::Tensor bias = o.bias() ? parameters.back() : at::Tensor();
  detail::initialize_layer(parameters[detail::kWeight], bias, scale, o.weight_init(), o.bias_init(),
                           o.in_channels() / o.groups() * kernel,
                           o.out_channels() / o.groups() * kernel);
}

template <size_t D>
void Conv<D>::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kConvDefaults<D>);
}

template struct ConvOptions<1>;
template struct ConvOptions<2>;
template class Conv<1>;
template class Conv<2>;

// -------------------------------------------------------------------------------------------------

ConvTranspose2dOptions::operator BlockPtr() const {
  return std::make_shared<const ConvTranspose2d>(*this);
}

ConvTranspose2d::ConvTranspose2d(ConvTranspose2dOptions options) : options_(std::move(options)) {
  const ConvTranspose2dOptions& o = options_;
  detail::check_options(type(), o);
  for (size_t d = 0; d < 2; ++d) {
    TORCH_CHECK_VALUE((*o.output_padding())[d] < std::max((*o.stride())[d], (*o.dilation())[d]),
                      "nsn::ConvTranspose2d: output_padding must be smaller than stride or "
                      "dilation, but is ",
                      (*o.output_padding())[d], ".");
  }
}

std::string ConvTranspose2d::options_json() const {
  return detail::write_options(options_, kTransposeDefaults);
}

std::vector<ParameterSpec> ConvTranspose2d::parameters() const {
  const ConvTranspose2dOptions& o = options_;
  std::vector<ParameterSpec> result{
      {"weight",
       {o.in_channels(), o.out_channels(), (*o.kernel_size())[0], (*o.kernel_size())[1]}}};
  if (o.bias()) {
    result.push_back({"bias", {o.out_channels()}, false, o.per_subnetwork().count("bias") > 0});
  }
  return result;
}

std::vector<Dimension> ConvTranspose2d::dimensions() const {
  return {{"out", options_.out_channels(), 1, 0}};
}

Fit ConvTranspose2d::fit(const Signal& input, const BlockUse& use) const {
  const ConvTranspose2dOptions& o = options_;
  const auto in =
      input.layout.size() == 3 ? detail::reads(input.layout[0], o.in_channels()) : std::nullopt;
  if (!in || input.is_integral) {
    misfit("floating (" + std::to_string(o.in_channels()) + ", H, W), its in_channels", input);
  }
  const Axis out(o.out_channels(), use.width_of("out", o.out_channels()));
  Fit result{use, input, {{out}, false}, {}, 0, {}};
  Layout weight{*in, out};
  int64_t kernel = 1;
  for (size_t d = 0; d < 2; ++d) {
    const int64_t spread =
        detail::saturating_product({input.layout[d + 1].kept() - 1, (*o.stride())[d]});
    if (spread > int64_t{1} << 60) misfit("fewer positions for its stride", input);
    const int64_t extent = spread - 2 * (*o.padding())[d] +
                           (*o.dilation())[d] * ((*o.kernel_size())[d] - 1) +
                           (*o.output_padding())[d] + 1;
    if (extent < 1) misfit("more positions than its padding cuts off", input);
    result.output.layout.emplace_back(extent);
    weight.emplace_back((*o.kernel_size())[d]);
    kernel *= (*o.kernel_size())[d];
  }
  result.flops =
      detail::saturating_product({2, out.kept(), kernel, detail::kept_numel(input.layout)});
  result.slices.push_back(std::move(weight));
  if (o.bias()) result.slices.push_back({out});
  return result;
}

Lanes ConvTranspose2d::joint(Lanes inputs, const BlockPass& pass) const {
  const ConvTranspose2dOptions& o = options_;
  const auto weights = pass.share(detail::kWeight);
  const auto biases = o.bias() ? pass.share(1) : std::vector<at::Tensor>(inputs.size());
  Lanes outputs;
  for (const size_t lane : c10::irange(inputs.size())) {
    const std::optional<at::Tensor> bias =
        o.bias() ? std::optional<at::Tensor>(biases[lane]) : std::nullopt;
    outputs.push_back(at::conv_transpose2d(inputs[lane], weights[lane], bias, o.stride(),
                                           o.padding(), o.output_padding(), /*groups=*/1,
                                           o.dilation()));
  }
  return detail::finish(std::move(outputs), pass,
                        {std::nullopt, std::nullopt, o.activation(), o.dropout()}, 1);
}

size_t ConvTranspose2d::lower(Lowering& to, size_t x) const {
  const ConvTranspose2dOptions& o = options_;
  std::vector<Operand> operands{to.operand(detail::kWeight, "weight")};
  if (o.bias()) operands.push_back(to.operand(1, "bias"));
  const primitives::TransposedConvolution convolution{extents(o.stride()), extents(o.padding()),
                                                      extents(o.output_padding()),
                                                      extents(o.dilation())};
  const size_t y = to.step("conv", convolution, {x}, std::move(operands));
  return detail::lower_finish(to, y, {std::nullopt, std::nullopt, o.activation(), o.dropout()}, 1);
}

BlockPtr ConvTranspose2d::narrowed(const Fit& fit) const {
  ConvTranspose2dOptions options = options_;
  options.in_channels(fit.input.layout[0].kept()).out_channels(fit.output.layout[0].kept());
  options.dropout(fit.use.dropout.value_or(options.dropout())).per_subnetwork({});
  return options;
}

void ConvTranspose2d::initialize(at::TensorList parameters) const {
  // As torch: the fan in is that of the second extent.
  const int64_t kernel = (*options_.kernel_size())[0] * (*options_.kernel_size())[1];
  detail::initialize_layer(parameters[detail::kWeight],
                           options_.bias() ? parameters[1] : at::Tensor(), {},
                           WeightInit::kKaimingUniform, std::nullopt,
                           options_.out_channels() * kernel, options_.in_channels() * kernel);
}

void ConvTranspose2d::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kTransposeDefaults);
}

detail::BlockType detail::block_type_Conv1d() { return block_type("Conv1d", kConvDefaults<1>); }
detail::BlockType detail::block_type_Conv2d() { return block_type("Conv2d", kConvDefaults<2>); }
detail::BlockType detail::block_type_ConvTranspose2d() {
  return block_type("ConvTranspose2d", kTransposeDefaults);
}

}  // namespace nsn
