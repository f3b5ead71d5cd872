#include "nsn/blocks/attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/util/irange.h>

#include <ostream>
#include <utility>

#include "blocks/arithmetic.h"
#include "blocks/builtin.h"
#include "blocks/options.h"
#include "blocks/support.h"
#include "nsn/blocks/dense.h"
#include "nsn/blocks/norm.h"

namespace nsn {

template <typename Options>
static void list_stream(const Options& options, detail::OptionVisitor& visitor) {
  visitor.required("features", options.features(), detail::doc::kFeatures, detail::at_least(1));
  visitor.required("heads", options.heads(), "the number of heads", detail::at_least(1));
}

template <typename Options>
static void list_heads(const Options& options, const Options& defaults,
                       detail::OptionVisitor& visitor) {
  visitor.optional("head_dim", options.head_dim(), defaults.head_dim(),
                   "the width of a head; none is `features` / `heads`", detail::at_least(1));
  visitor.optional("causal", options.causal(), defaults.causal(),
                   "whether a position sees only itself and those before");
  visitor.optional("bias", options.bias(), defaults.bias(), "whether to add biases");
}

// Found by the type of the options, which an unnamed namespace would prevent.
static void list_options(const AttentionOptions& options, const AttentionOptions& defaults,
                         detail::OptionVisitor& visitor) {
  list_stream(options, visitor);
  list_heads(options, defaults, visitor);
  visitor.optional("dropout", options.dropout(), defaults.dropout(), detail::doc::kDropout,
                   detail::probability());
  visitor.optional("per_subnetwork", options.per_subnetwork(), defaults.per_subnetwork(),
                   detail::doc::kPerSubnetwork, detail::parts({{"bias", options.bias()}}));
}

static void list_options(const TransformerOptions& options, const TransformerOptions& defaults,
                         detail::OptionVisitor& visitor) {
  list_stream(options, visitor);
  visitor.required("ffn", options.ffn(), "the width of the hidden layer", detail::at_least(1));
  list_heads(options, defaults, visitor);
  visitor.optional("activation", options.activation(), defaults.activation(),
                   "the activation of the hidden layer; may be gated");
  visitor.optional("dropout", options.dropout(), defaults.dropout(),
                   "the probability that an element is dropped in training, behind attention and "
                   "behind ffn",
                   detail::probability());
  visitor.optional("norm", options.norm(), defaults.norm(), "the kind of norm",
                   detail::one_of({"layer", "rms"}));
  visitor.optional("per_subnetwork", options.per_subnetwork(), defaults.per_subnetwork(),
                   detail::doc::kPerSubnetwork,
                   detail::parts({{"affine", true}, {"bias", options.bias()}}));
}

namespace {

const AttentionOptions kDefaults(1, 1);
const TransformerOptions kTransformerDefaults(1, 1, 1);

/// The blocks that a Transformer is made of.
std::vector<InnerBlock> transformer_parts(const TransformerOptions& o) {
  detail::check_options("Transformer", o);
  const Parts biases = o.per_subnetwork().count("bias") > 0 ? Parts{"bias"} : Parts{};
  const Parts affine = o.per_subnetwork().count("affine") > 0 ? Parts{"affine"} : Parts{};
  const auto norm = [&]() -> BlockPtr {
    if (o.norm() == "rms") return RMSNormOptions(o.features()).per_subnetwork(affine);
    return LayerNormOptions(o.features()).bias(o.bias()).per_subnetwork(affine);
  };
  const auto dense = [&](int64_t in, int64_t out) {
    return DenseOptions(in, out).bias(o.bias()).per_subnetwork(biases);
  };
  ResidualOptions attention, ffn;
  attention.block("norm", norm())
      .block("self", AttentionOptions(o.features(), o.heads())
                         .head_dim(o.head_dim())
                         .causal(o.causal())
                         .bias(o.bias())
                         .dropout(o.dropout())
                         .per_subnetwork(biases));
  ffn.block("norm", norm())
      .block("up", dense(o.features(), o.ffn()).activation(o.activation()),
             /*takes_dropout=*/false)
      .block("down", dense(o.ffn(), o.features()).dropout(o.dropout()));
  return {{"attention", attention}, {"ffn", ffn}};
}

constexpr size_t kQkvWeight = 0, kOutWeight = 1, kQkvBias = 2, kOutBias = 3;

detail::Epilogue epilogue_of(const AttentionOptions& o, size_t bias,
                             std::optional<double> dropout) {
  detail::Epilogue result;
  if (o.bias()) result.bias = bias;
  result.dropout = dropout;
  return result;
}

}  // namespace

AttentionOptions::operator BlockPtr() const { return std::make_shared<const Attention>(*this); }

Attention::Attention(AttentionOptions options) : options_(std::move(options)) {
  const AttentionOptions& o = options_;
  detail::check_options("Attention", o);
  TORCH_CHECK_VALUE(o.head_dim() || o.features() % o.heads() == 0,
                    "nsn::Attention: heads must divide features unless head_dim is given, but ",
                    o.heads(), " does not divide ", o.features(), ". Give head_dim.");
}

int64_t Attention::head_dim() const {
  return options_.head_dim().value_or(options_.features() / options_.heads());
}

std::string Attention::options_json() const { return detail::write_options(options_, kDefaults); }

std::vector<ParameterSpec> Attention::parameters() const {
  const int64_t inside = options_.heads() * head_dim(), features = options_.features();
  const bool is_private = options_.per_subnetwork().count("bias") > 0;
  std::vector<ParameterSpec> result{{"qkv.weight", {3 * inside, features}},
                                    {"out.weight", {features, inside}}};
  if (options_.bias()) {
    result.push_back({"qkv.bias", {3 * inside}, /*decays=*/false, is_private});
    result.push_back({"out.bias", {features}, /*decays=*/false, is_private});
  }
  return result;
}

std::vector<Dimension> Attention::dimensions() const { return {{"heads", options_.heads()}}; }

Fit Attention::fit(const Signal& input, const BlockUse& use) const {
  const auto features = input.layout.size() == 2 && !input.is_integral
                            ? detail::reads(input.layout[1], options_.features())
                            : std::nullopt;
  if (!features) {
    misfit("floating (T, " + std::to_string(options_.features()) + "), its features", input);
  }
  const int64_t heads = use.width_of("heads", options_.heads());
  const Axis inside(options_.heads() * head_dim(), heads * head_dim());
  const Axis qkv({{3, 3}, {inside.full(), inside.kept()}});
  Fit result{use, input, input, {{qkv, *features}, {*features, inside}}, 0, {}};
  if (options_.bias()) {
    result.slices.push_back({qkv});
    result.slices.push_back({*features});
  }
  const int64_t positions = input.layout[0].kept();
  // Two products for each weight, and Q K^T and the weighted sum of V.
  result.flops = detail::saturating_add(
      detail::saturating_product({8, positions, inside.kept(), features->kept()}),
      detail::saturating_product({4, positions, positions, inside.kept()}));
  return result;
}

Lanes Attention::joint(Lanes inputs, const BlockPass& pass) const {
  const functional::Memory memory{pass.memory.workspace};
  const auto qkv =
      detail::product(inputs, pass, kQkvWeight, epilogue_of(options_, kQkvBias, std::nullopt),
                      pass.first_of_way(&LanePass::input_way), memory);
  Lanes heads;
  for (const at::Tensor& each : qkv) {
    // Three of (B, T, heads, head_dim), whose gradients are stacked where the product has them.
    const int64_t count = each.size(2) / (3 * head_dim());
    const auto parts = each.view({each.size(0), each.size(1), 3, count, head_dim()}).unbind(2);
    const at::Tensor attended = at::scaled_dot_product_attention(
        parts[0].transpose(1, 2), parts[1].transpose(1, 2), parts[2].transpose(1, 2),
        /*attn_mask=*/{}, /*dropout_p=*/0.0, options_.causal());
    heads.push_back(attended.transpose(1, 2).flatten(2));
  }
  return detail::product(heads, pass, kOutWeight,
                         epilogue_of(options_, kOutBias, options_.dropout()), {}, memory);
}

size_t Attention::lower(Lowering& to, size_t x) const {
  const int64_t heads = to.fit().use.width_of("heads", options_.heads());
  const size_t qkv = detail::lower_product(to, "qkv", x, kQkvWeight,
                                           epilogue_of(options_, kQkvBias, std::nullopt));
  const size_t attended = to.step("heads", primitives::Attend{heads, options_.causal()}, {qkv});
  return detail::lower_product(to, "out", attended, kOutWeight,
                               epilogue_of(options_, kOutBias, options_.dropout()));
}

BlockPtr Attention::narrowed(const Fit& fit) const {
  AttentionOptions options = options_;
  options.features(fit.input.layout[1].kept()).heads(fit.use.width_of("heads", options.heads()));
  options.head_dim(head_dim()).dropout(fit.use.dropout.value_or(options.dropout()));
  return options.per_subnetwork({});
}

void Attention::initialize(at::TensorList parameters) const {
  const int64_t inside = options_.heads() * head_dim(), features = options_.features();
  for (const size_t i : {0, 1}) {
    detail::initialize_layer(parameters[i], options_.bias() ? parameters[i + 2] : at::Tensor(), {},
                             WeightInit::kKaimingUniform, std::nullopt, i == 0 ? features : inside,
                             i == 0 ? inside : features);
  }
}

void Attention::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kDefaults);
}

// -------------------------------------------------------------------------------------------------

TransformerOptions::operator BlockPtr() const { return std::make_shared<const Transformer>(*this); }

Transformer::Transformer(TransformerOptions options)
    : Composite(transformer_parts(options), /*is_residual=*/false), options_(std::move(options)) {}

std::string Transformer::options_json() const {
  return detail::write_options(options_, kTransformerDefaults);
}

std::vector<Dimension> Transformer::dimensions() const {
  return {{"heads", options_.heads()}, {"ffn", options_.ffn()}};
}

Fit Transformer::fit(const Signal& input, const BlockUse& use) const {
  BlockUse inner{use.dropout, {}};
  for (const auto& [dimension, count] : use.width) {
    inner.width[dimension == "heads" ? "attention.self.heads" : "ffn.up.out"] = count;
  }
  Fit result = Composite::fit(input, inner);
  result.use = use;
  return result;
}

BlockPtr Transformer::narrowed(const Fit& fit) const {
  TransformerOptions options = options_;
  options.head_dim(options.head_dim().value_or(options.features() / options.heads()));
  options.features(fit.input.layout[1].kept()).heads(fit.use.width_of("heads", options.heads()));
  options.ffn(fit.use.width_of("ffn", options.ffn()));
  return options.dropout(fit.use.dropout.value_or(options.dropout())).per_subnetwork({});
}

void Transformer::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kTransformerDefaults);
}

namespace detail {

BlockType block_type_Attention() { return block_type("Attention", kDefaults); }
BlockType block_type_Transformer() { return block_type("Transformer", kTransformerDefaults); }

}  // namespace detail
}  // namespace nsn
