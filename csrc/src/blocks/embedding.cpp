#include "nsn/blocks/embedding.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <c10/util/irange.h>

#include <ostream>
#include <utility>

#include "blocks/arithmetic.h"
#include "blocks/builtin.h"
#include "blocks/options.h"
#include "blocks/support.h"
#include "nsn/blocks/dense.h"

namespace nsn {

template <typename Options>
static void list_start(const Options& options, const Options& defaults,
                       detail::OptionVisitor& visitor) {
  visitor.optional("std", options.std(), defaults.std(),
                   "the standard deviation of the normal distribution that the weight starts with",
                   detail::between(0, 1e6));
  visitor.optional("dropout", options.dropout(), defaults.dropout(), detail::doc::kDropout,
                   detail::probability());
}

// Found by the type of the options, which an unnamed namespace would prevent.
static void list_options(const EmbeddingOptions& options, const EmbeddingOptions& defaults,
                         detail::OptionVisitor& visitor) {
  visitor.required("num_embeddings", options.num_embeddings(),
                   "the number of rows of E; x is from 0 to `num_embeddings` - 1",
                   detail::at_least(1));
  visitor.required("embedding_dim", options.embedding_dim(), "the last extent of the output",
                   detail::at_least(1));
  list_start(options, defaults, visitor);
}

static void list_options(const PositionEmbeddingOptions& options,
                         const PositionEmbeddingOptions& defaults, detail::OptionVisitor& visitor) {
  visitor.required("length", options.length(), "the largest T", detail::at_least(1));
  visitor.required("features", options.features(), detail::doc::kFeatures, detail::at_least(1));
  list_start(options, defaults, visitor);
}

static void list_options(const TiedOutputOptions& options, const TiedOutputOptions& defaults,
                         detail::OptionVisitor& visitor) {
  visitor.required("embedding", options.embedding(), "the name of the Embedding block");
  visitor.required("num_embeddings", options.num_embeddings(), "the `num_embeddings` of that block",
                   detail::at_least(1));
  visitor.required("embedding_dim", options.embedding_dim(), "the `embedding_dim` of that block",
                   detail::at_least(1));
  visitor.optional("bias", options.bias(), defaults.bias(), detail::doc::kBias);
  visitor.optional("per_subnetwork", options.per_subnetwork(), defaults.per_subnetwork(),
                   detail::doc::kPerSubnetwork, detail::parts({{"bias", options.bias()}}));
}

namespace {

const EmbeddingOptions kDefaults(1, 1);
const PositionEmbeddingOptions kPositionDefaults(1, 1);
const TiedOutputOptions kTiedDefaults("", 1, 1);

}  // namespace

EmbeddingOptions::operator BlockPtr() const { return std::make_shared<const Embedding>(*this); }

Embedding::Embedding(EmbeddingOptions options) : options_(options) {
  detail::check_options("Embedding", options_);
}

std::string Embedding::options_json() const { return detail::write_options(options_, kDefaults); }

std::vector<ParameterSpec> Embedding::parameters() const {
  return {{"weight", {options_.num_embeddings(), options_.embedding_dim()}, /*decays=*/false}};
}

std::vector<Dimension> Embedding::dimensions() const {
  return {{"out", options_.embedding_dim(), 1, -1}};
}

Fit Embedding::fit(const Signal& input, const BlockUse& use) const {
  if (!input.is_integral) misfit("integral input, indices", input);
  const Axis out(options_.embedding_dim(), use.width_of("out", options_.embedding_dim()));
  Fit result{use, input, {input.layout, false}, {{options_.num_embeddings(), out}}, 0, {}};
  result.output.layout.push_back(out);
  return result;
}

Lanes Embedding::joint(Lanes inputs, const BlockPass& pass) const {
  const auto weights = pass.share(0);
  Lanes outputs;
  for (const size_t lane : c10::irange(inputs.size())) {
    const at::Tensor& x = inputs[lane];
    const bool takes = x.scalar_type() == at::kLong || x.scalar_type() == at::kInt;
    outputs.push_back(at::embedding(weights[lane], takes ? x : x.to(at::kLong)));
  }
  return detail::drop(std::move(outputs), options_.dropout(), pass);
}

size_t Embedding::lower(Lowering& to, size_t x) const {
  const size_t y = to.step("embedding", primitives::Embed{}, {x}, {to.operand(0, "weight")});
  return detail::lower_dropout(to, y, options_.dropout());
}

BlockPtr Embedding::narrowed(const Fit& fit) const {
  EmbeddingOptions options = options_;
  options.embedding_dim(fit.output.layout.back().kept());
  options.dropout(fit.use.dropout.value_or(options.dropout()));
  return options;
}

void Embedding::initialize(at::TensorList parameters) const {
  const at::NoGradGuard no_grad;
  parameters[0].normal_(0.0, options_.std());
}

void Embedding::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kDefaults);
}

// -------------------------------------------------------------------------------------------------

PositionEmbeddingOptions::operator BlockPtr() const {
  return std::make_shared<const PositionEmbedding>(*this);
}

PositionEmbedding::PositionEmbedding(PositionEmbeddingOptions options) : options_(options) {
  detail::check_options("PositionEmbedding", options_);
}

std::string PositionEmbedding::options_json() const {
  return detail::write_options(options_, kPositionDefaults);
}

std::vector<ParameterSpec> PositionEmbedding::parameters() const {
  return {{"weight", {options_.length(), options_.features()}, /*decays=*/false}};
}

Fit PositionEmbedding::fit(const Signal& input, const BlockUse& use) const {
  const bool fits =
      input.layout.size() == 2 && !input.is_integral && input.layout[0].kept() <= options_.length();
  const auto features = fits ? detail::reads(input.layout[1], options_.features()) : std::nullopt;
  if (!features) {
    misfit("floating (T, " + std::to_string(options_.features()) + ") with T up to " +
               std::to_string(options_.length()) + ", its length",
           input);
  }
  const Axis length(options_.length(), input.layout[0].kept());
  return {use, input, input, {{length, *features}}, 0, {}};
}

Lanes PositionEmbedding::joint(Lanes inputs, const BlockPass& pass) const {
  const auto weights = pass.share(0);
  Lanes outputs;
  for (const size_t lane : c10::irange(inputs.size())) {
    outputs.push_back(inputs[lane] + weights[lane]);
  }
  return detail::drop(std::move(outputs), options_.dropout(), pass);
}

size_t PositionEmbedding::lower(Lowering& to, size_t x) const {
  const size_t y = to.step("position", primitives::Add{}, {x}, {to.operand(0, "weight")});
  return detail::lower_dropout(to, y, options_.dropout());
}

BlockPtr PositionEmbedding::narrowed(const Fit& fit) const {
  PositionEmbeddingOptions options = options_;
  options.length(fit.slices[0][0].kept()).features(fit.slices[0][1].kept());
  options.dropout(fit.use.dropout.value_or(options.dropout()));
  return options;
}

void PositionEmbedding::initialize(at::TensorList parameters) const {
  const at::NoGradGuard no_grad;
  parameters[0].normal_(0.0, options_.std());
}

void PositionEmbedding::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kPositionDefaults);
}

// -------------------------------------------------------------------------------------------------

TiedOutputOptions::operator BlockPtr() const { return std::make_shared<const TiedOutput>(*this); }

TiedOutput::TiedOutput(TiedOutputOptions options) : options_(std::move(options)) {
  detail::check_options("TiedOutput", options_);
}

std::string TiedOutput::options_json() const {
  return detail::write_options(options_, kTiedDefaults);
}

std::vector<ParameterSpec> TiedOutput::parameters() const {
  ParameterSpec weight{"weight", {options_.num_embeddings(), options_.embedding_dim()}};
  weight.tied_to = options_.embedding() + ".weight";
  std::vector<ParameterSpec> result{std::move(weight)};
  if (options_.bias()) {
    result.push_back({"bias",
                      {options_.num_embeddings()},
                      /*decays=*/false,
                      options_.per_subnetwork().count("bias") > 0});
  }
  return result;
}

Fit TiedOutput::fit(const Signal& input, const BlockUse& use) const {
  const auto in = input.layout.empty() || input.is_integral
                      ? std::nullopt
                      : detail::reads(input.layout.back(), options_.embedding_dim());
  if (!in) {
    misfit("floating (*, " + std::to_string(options_.embedding_dim()) + "), its embedding_dim",
           input);
  }
  Fit result{use, input, input, {{options_.num_embeddings(), *in}}, 0, {}};
  result.output.layout.back() = Axis(options_.num_embeddings());
  if (options_.bias()) result.slices.push_back({options_.num_embeddings()});
  result.flops =
      detail::saturating_product({2, options_.num_embeddings(), detail::kept_numel(input.layout)});
  return result;
}

at::Tensor TiedOutput::forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                               const BlockPass& pass) const {
  static_cast<void>(lane);
  static_cast<void>(pass);
  const std::optional<at::Tensor> bias =
      options_.bias() ? std::optional<at::Tensor>(parameters[1]) : std::nullopt;
  return at::linear(x, parameters[0], bias);
}

size_t TiedOutput::lower(Lowering& to, size_t x) const {
  detail::Epilogue after;
  if (options_.bias()) after.bias = 1;
  return detail::lower_product(to, "linear", x, 0, after);
}

BlockPtr TiedOutput::narrowed(const Fit& fit) const {
  TiedOutputOptions options = options_;
  options.embedding_dim(fit.slices[0][1].kept()).per_subnetwork({});
  return options;
}

BlockPtr TiedOutput::untied() const {
  return DenseOptions(options_.embedding_dim(), options_.num_embeddings())
      .bias(options_.bias())
      .per_subnetwork(options_.per_subnetwork());
}

void TiedOutput::initialize(at::TensorList parameters) const {
  const at::NoGradGuard no_grad;
  // The first is the embedding's own, and starts there.
  if (options_.bias()) parameters[1].zero_();
}

void TiedOutput::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kTiedDefaults);
}

namespace detail {

BlockType block_type_Embedding() { return block_type("Embedding", kDefaults); }
BlockType block_type_PositionEmbedding() {
  return block_type("PositionEmbedding", kPositionDefaults);
}
BlockType block_type_TiedOutput() { return block_type("TiedOutput", kTiedDefaults); }

}  // namespace detail
}  // namespace nsn
