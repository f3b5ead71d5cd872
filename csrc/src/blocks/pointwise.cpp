#include "nsn/blocks/pointwise.h"

#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <ostream>
#include <utility>

#include "blocks/builtin.h"
#include "blocks/options.h"
#include "blocks/support.h"
#include "nsn/blocks/lowering.h"
#include "nsn/functional/functional.h"
#include "operations/autograd.h"

namespace nsn {

// Found by the type of the options, which an unnamed namespace would prevent.
static void list_options(const ActivationOptions& options, const ActivationOptions& defaults,
                         detail::OptionVisitor& visitor) {
  static_cast<void>(defaults);
  visitor.required("function", options.function(), "the activation", detail::not_gated());
}

static void list_options(const DropoutOptions& options, const DropoutOptions& defaults,
                         detail::OptionVisitor& visitor) {
  static_cast<void>(defaults);
  visitor.required("p", options.p(), "the probability that an element is dropped in training",
                   detail::probability());
}

static void list_options(const UpsampleOptions& options, const UpsampleOptions& defaults,
                         detail::OptionVisitor& visitor) {
  visitor.required("scale_factor", options.scale_factor(),
                   "the number of positions that each becomes, in height and in width",
                   detail::at_least(1));
  visitor.optional("mode", options.mode(), defaults.mode(), "the interpolation",
                   detail::one_of({"nearest", "bilinear"}));
}

namespace {

const UpsampleOptions kUpsampleDefaults(1);

Fit same(const Signal& input, const BlockUse& use) {
  if (input.is_integral) misfit("floating input", input);
  return {use, input, input, {}, 0, {}};
}

}  // namespace

ActivationOptions::operator BlockPtr() const {
  return std::make_shared<const ActivationBlock>(*this);
}

ActivationBlock::ActivationBlock(ActivationOptions options) : options_(std::move(options)) {
  detail::check_options("Activation", options_);
}

std::string ActivationBlock::options_json() const {
  return detail::write_options(options_, options_);
}

Fit ActivationBlock::fit(const Signal& input, const BlockUse& use) const {
  return same(input, use);
}

namespace {

/// Whether ReLU may write over its input. Batch norm's backward does without its result; others may
/// not.
bool may_overwrite(const Lanes& lanes, size_t lane) {
  const at::Tensor& x = lanes[lane];
  if (!lanes.is_spare(lane)) return false;
  if (!x.requires_grad()) return true;
  const auto& maker = x.grad_fn();
  return maker && maker->name() == "NativeBatchNormBackward0";
}

}  // namespace

Lanes ActivationBlock::joint(Lanes inputs, const BlockPass& pass) const {
  // The kernel works on contiguous memory; convolutions give channels-last.
  const bool contiguous = std::all_of(inputs.begin(), inputs.end(),
                                      [](const at::Tensor& x) { return x.is_contiguous(); });
  if (contiguous && std::holds_alternative<torch::enumtype::kReLU>(options_.function())) {
    functional::ReluDropout relu{true, {}, pass.first_of_way(&LanePass::input_way)};
    relu.dropout.resize(inputs.size());
    return functional::relu_dropout(inputs, relu, pass.memory);
  }
  const bool relu = std::holds_alternative<torch::enumtype::kReLU>(options_.function());
  Lanes outputs;
  for (const size_t lane : c10::irange(inputs.size())) {
    const at::Tensor& x = inputs[lane];
    const bool in_place = relu && may_overwrite(inputs, lane);
    const at::Tensor y = in_place ? at::Tensor(x).relu_() : activate(x, options_.function());
    if (y.requires_grad() && y.is_contiguous(at::MemoryFormat::ChannelsLast)) {
      // Behind Flatten a gradient has the other format, and element-wise backwards of two formats
      // are several times as slow.
      y.register_hook([](const at::Tensor& gradient) {
        return gradient.defined() ? gradient.contiguous(at::MemoryFormat::ChannelsLast) : gradient;
      });
    }
    outputs.push_back(y);
  }
  return outputs;
}

size_t ActivationBlock::lower(Lowering& to, size_t x) const {
  return to.step("activation", primitives::Activate{options_.function()}, {x});
}

void ActivationBlock::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, options_);
}

DropoutOptions::operator BlockPtr() const { return std::make_shared<const Dropout>(*this); }

Dropout::Dropout(DropoutOptions options) : options_(options) {
  detail::check_options("Dropout", options_);
}

std::string Dropout::options_json() const { return detail::write_options(options_, options_); }

Fit Dropout::fit(const Signal& input, const BlockUse& use) const { return same(input, use); }

Lanes Dropout::joint(Lanes inputs, const BlockPass& pass) const {
  return detail::drop(std::move(inputs), options_.p(), pass);
}

size_t Dropout::lower(Lowering& to, size_t x) const {
  return to.step("dropout", primitives::Drop{to.fit().use.dropout.value_or(options_.p())}, {x});
}

BlockPtr Dropout::narrowed(const Fit& fit) const {
  return DropoutOptions(fit.use.dropout.value_or(options_.p()));
}

void Dropout::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, options_);
}

FlattenOptions::operator BlockPtr() const { return std::make_shared<const Flatten>(); }

Fit Flatten::fit(const Signal& input, const BlockUse& use) const {
  std::vector<Axis::Factor> factors;
  for (const Axis& axis : input.layout) {
    factors.insert(factors.end(), axis.factors().begin(), axis.factors().end());
  }
  return {use, input, {{Axis(factors)}, input.is_integral}, {}, 0, {}};
}

at::Tensor Flatten::forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                            const BlockPass& pass) const {
  static_cast<void>(parameters);
  static_cast<void>(lane);
  static_cast<void>(pass);
  return x.flatten(1);
}

size_t Flatten::lower(Lowering& to, size_t x) const {
  return to.step("flatten", primitives::Reshape{kept_shape(to.fit().output.layout)}, {x});
}

UpsampleOptions::operator BlockPtr() const { return std::make_shared<const Upsample>(*this); }

Upsample::Upsample(UpsampleOptions options) : options_(std::move(options)) {
  detail::check_options("Upsample", options_);
}

std::string Upsample::options_json() const {
  return detail::write_options(options_, kUpsampleDefaults);
}

Fit Upsample::fit(const Signal& input, const BlockUse& use) const {
  if (input.layout.size() != 3 || input.is_integral) misfit("floating (C, H, W)", input);
  Fit result{use, input, input, {}, 0, {}};
  for (const size_t d : {1, 2}) {
    result.output.layout[d] =
        Axis(detail::saturating_product({input.layout[d].kept(), options_.scale_factor()}));
  }
  return result;
}

at::Tensor Upsample::forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                             const BlockPass& pass) const {
  static_cast<void>(parameters);
  static_cast<void>(lane);
  static_cast<void>(pass);
  const std::vector<int64_t> size{x.size(2) * options_.scale_factor(),
                                  x.size(3) * options_.scale_factor()};
  return options_.mode() == "nearest" ? at::upsample_nearest2d(x, size)
                                      : at::upsample_bilinear2d(x, size, /*align_corners=*/false);
}

size_t Upsample::lower(Lowering& to, size_t x) const {
  return to.step("upsample", primitives::Upsample{options_.scale_factor(), options_.mode()}, {x});
}

void Upsample::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kUpsampleDefaults);
}

namespace detail {

BlockType block_type_Activation() { return block_type("Activation", ActivationOptions()); }
BlockType block_type_Dropout() { return block_type("Dropout", DropoutOptions()); }
BlockType block_type_Flatten() {
  return {"Flatten", [](Fields&, const Supplied&) -> BlockPtr { return FlattenOptions(); }, {}};
}
BlockType block_type_Upsample() { return block_type("Upsample", kUpsampleDefaults); }

}  // namespace detail
}  // namespace nsn
