#include "nsn/blocks/norm.h"

#include <ATen/ops/group_norm.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/rms_norm.h>

#include <ostream>
#include <utility>

#include "blocks/affine.h"
#include "blocks/builtin.h"
#include "blocks/options.h"
#include "blocks/support.h"
#include "nsn/blocks/lowering.h"

namespace nsn {

// Found by the type of the options, which an unnamed namespace would prevent.
static void list_options(const LayerNormOptions& options, const LayerNormOptions& defaults,
                         detail::OptionVisitor& visitor) {
  visitor.required("features", options.features(), detail::doc::kFeatures, detail::at_least(1));
  visitor.optional("eps", options.eps(), defaults.eps(), detail::doc::kEps);
  visitor.optional("affine", options.affine(), defaults.affine(), detail::doc::kAffine);
  visitor.optional("bias", options.bias(), defaults.bias(), "whether `affine` adds a bias");
  visitor.optional("per_subnetwork", options.per_subnetwork(), defaults.per_subnetwork(),
                   detail::doc::kPerSubnetwork, detail::parts({{"affine", options.affine()}}));
}

static void list_options(const RMSNormOptions& options, const RMSNormOptions& defaults,
                         detail::OptionVisitor& visitor) {
  visitor.required("features", options.features(), detail::doc::kFeatures, detail::at_least(1));
  visitor.optional("eps", options.eps(), defaults.eps(), "the addend to the mean square");
  visitor.optional("affine", options.affine(), defaults.affine(),
                   "whether to multiply with a weight");
  visitor.optional("per_subnetwork", options.per_subnetwork(), defaults.per_subnetwork(),
                   detail::doc::kPerSubnetwork, detail::parts({{"affine", options.affine()}}));
}

static void list_options(const GroupNormOptions& options, const GroupNormOptions& defaults,
                         detail::OptionVisitor& visitor) {
  visitor.required("groups", options.groups(), "the number of groups of channels",
                   detail::at_least(1));
  visitor.required("channels", options.channels(), detail::doc::kInChannels, detail::at_least(1));
  visitor.optional("eps", options.eps(), defaults.eps(), detail::doc::kEps);
  visitor.optional("affine", options.affine(), defaults.affine(), detail::doc::kAffine);
  visitor.optional("per_subnetwork", options.per_subnetwork(), defaults.per_subnetwork(),
                   detail::doc::kPerSubnetwork, detail::parts({{"affine", options.affine()}}));
}

namespace {

using detail::affine;
using detail::affine_operands;
using detail::fit_first;
using detail::start_affine;

const LayerNormOptions kLayerNormDefaults(1);
const RMSNormOptions kRMSNormDefaults(1);
const GroupNormOptions kGroupNormDefaults(1, 1);

/// How a norm over the last dimension fits.
Fit fit_last(const Signal& input, const BlockUse& use, int64_t features, size_t parameters) {
  const auto axis = input.layout.empty() || input.is_integral
                        ? std::nullopt
                        : detail::reads(input.layout.back(), features);
  if (!axis) misfit("floating (*, " + std::to_string(features) + "), its features", input);
  return {use, input, input, std::vector<Layout>(parameters, Layout{*axis}), 0, {}};
}

std::optional<at::Tensor> at_or_none(at::TensorList parameters, size_t place) {
  return place < parameters.size() ? std::optional<at::Tensor>(parameters[place]) : std::nullopt;
}

}  // namespace

LayerNormOptions::operator BlockPtr() const { return std::make_shared<const LayerNorm>(*this); }

LayerNorm::LayerNorm(LayerNormOptions options) : options_(std::move(options)) {
  detail::check_options("LayerNorm", options_);
}

std::string LayerNorm::options_json() const {
  return detail::write_options(options_, kLayerNormDefaults);
}

std::vector<ParameterSpec> LayerNorm::parameters() const {
  if (!options_.affine()) return {};
  return affine(options_.features(), options_.bias(), options_.per_subnetwork());
}

Fit LayerNorm::fit(const Signal& input, const BlockUse& use) const {
  return fit_last(input, use, options_.features(), parameters().size());
}

at::Tensor LayerNorm::forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                              const BlockPass& pass) const {
  static_cast<void>(lane);
  static_cast<void>(pass);
  return at::layer_norm(x, {x.size(-1)}, at_or_none(parameters, 0), at_or_none(parameters, 1),
                        options_.eps());
}

size_t LayerNorm::lower(Lowering& to, size_t x) const {
  return to.step("norm", primitives::LayerNorm{options_.eps()}, {x},
                 affine_operands(to, parameters().size()));
}

BlockPtr LayerNorm::narrowed(const Fit& fit) const {
  return LayerNormOptions(options_).features(fit.input.layout.back().kept()).per_subnetwork({});
}

void LayerNorm::initialize(at::TensorList parameters) const {
  if (options_.affine()) start_affine(parameters, options_.bias());
}

void LayerNorm::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kLayerNormDefaults);
}

// -------------------------------------------------------------------------------------------------

RMSNormOptions::operator BlockPtr() const { return std::make_shared<const RMSNorm>(*this); }

RMSNorm::RMSNorm(RMSNormOptions options) : options_(std::move(options)) {
  detail::check_options("RMSNorm", options_);
}

std::string RMSNorm::options_json() const {
  return detail::write_options(options_, kRMSNormDefaults);
}

std::vector<ParameterSpec> RMSNorm::parameters() const {
  if (!options_.affine()) return {};
  return affine(options_.features(), /*has_bias=*/false, options_.per_subnetwork());
}

Fit RMSNorm::fit(const Signal& input, const BlockUse& use) const {
  return fit_last(input, use, options_.features(), parameters().size());
}

at::Tensor RMSNorm::forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                            const BlockPass& pass) const {
  static_cast<void>(lane);
  static_cast<void>(pass);
  return at::rms_norm(x, {x.size(-1)}, at_or_none(parameters, 0), options_.eps());
}

size_t RMSNorm::lower(Lowering& to, size_t x) const {
  return to.step("norm", primitives::RMSNorm{options_.eps()}, {x},
                 affine_operands(to, parameters().size()));
}

BlockPtr RMSNorm::narrowed(const Fit& fit) const {
  return RMSNormOptions(options_).features(fit.input.layout.back().kept()).per_subnetwork({});
}

void RMSNorm::initialize(at::TensorList parameters) const {
  if (options_.affine()) start_affine(parameters, /*has_bias=*/false);
}

void RMSNorm::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kRMSNormDefaults);
}

// -------------------------------------------------------------------------------------------------

GroupNormOptions::operator BlockPtr() const { return std::make_shared<const GroupNorm>(*this); }

GroupNorm::GroupNorm(GroupNormOptions options) : options_(std::move(options)) {
  detail::check_options("GroupNorm", options_);
  TORCH_CHECK_VALUE(options_.channels() % options_.groups() == 0,
                    "nsn::GroupNorm: groups must divide channels, but ", options_.groups(),
                    " does not divide ", options_.channels(), ". Change one of them.");
}

std::string GroupNorm::options_json() const {
  return detail::write_options(options_, kGroupNormDefaults);
}

std::vector<ParameterSpec> GroupNorm::parameters() const {
  if (!options_.affine()) return {};
  return affine(options_.channels(), /*has_bias=*/true, options_.per_subnetwork());
}

Fit GroupNorm::fit(const Signal& input, const BlockUse& use) const {
  Fit result = fit_first(input, use, options_.channels(), parameters().size(), "channels");
  const auto axis = detail::reads(input.layout.front(), options_.channels());
  if (!detail::cut_groups(*axis, options_.groups())) {
    misfit("channels that are whole groups, or the leading part of each, of its " +
               std::to_string(options_.groups()) + " groups of " +
               std::to_string(options_.channels() / options_.groups()),
           input);
  }
  return result;
}

at::Tensor GroupNorm::forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                              const BlockPass& pass) const {
  static_cast<void>(pass);
  const auto axis = detail::reads(lane.fit->input.layout.front(), options_.channels());
  const auto cut = detail::cut_groups(*axis, options_.groups());
  // Of what lies channels-last torch takes the variance from the mean square, in float32, where
  // little is left of it beside a large mean.
  return at::group_norm(x.contiguous(), cut->groups, at_or_none(parameters, 0),
                        at_or_none(parameters, 1), options_.eps());
}

size_t GroupNorm::lower(Lowering& to, size_t x) const {
  const auto axis = detail::reads(to.fit().input.layout.front(), options_.channels());
  const auto cut = detail::cut_groups(*axis, options_.groups());
  return to.step("norm", primitives::GroupNorm{cut->groups, options_.eps()}, {x},
                 affine_operands(to, parameters().size()));
}

BlockPtr GroupNorm::narrowed(const Fit& fit) const {
  const auto axis = detail::reads(fit.input.layout.front(), options_.channels());
  return GroupNormOptions(options_)
      .groups(detail::cut_groups(*axis, options_.groups())->groups)
      .channels(fit.input.layout.front().kept())
      .per_subnetwork({});
}

void GroupNorm::initialize(at::TensorList parameters) const {
  if (options_.affine()) start_affine(parameters, /*has_bias=*/true);
}

void GroupNorm::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kGroupNormDefaults);
}

namespace detail {

BlockType block_type_LayerNorm() { return block_type("LayerNorm", kLayerNormDefaults); }
BlockType block_type_RMSNorm() { return block_type("RMSNorm", kRMSNormDefaults); }
BlockType block_type_GroupNorm() { return block_type("GroupNorm", kGroupNormDefaults); }

}  // namespace detail
}  // namespace nsn
