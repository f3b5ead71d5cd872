#include "nsn/blocks/dense.h"

#include <c10/util/irange.h>

#include <ostream>
#include <utility>

#include "blocks/arithmetic.h"
#include "blocks/builtin.h"
#include "blocks/options.h"
#include "blocks/support.h"

namespace nsn {

// Found by the type of the options, which an unnamed namespace would prevent.
static void list_options(const DenseOptions& options, const DenseOptions& defaults,
                         detail::OptionVisitor& visitor) {
  visitor.required("in_features", options.in_features(), detail::doc::kFeatures,
                   detail::at_least(1));
  visitor.required("out_features", options.out_features(), "the last extent of the output",
                   detail::at_least(1));
  detail::list_layer(options, defaults, visitor);
}

namespace {

const DenseOptions kDenseDefaults(1, 1);

/// Behind the weight stand the scale and the bias, where there are some.
detail::Epilogue epilogue_of(const DenseOptions& o) {
  detail::Epilogue result{std::nullopt, std::nullopt, o.activation(), o.dropout()};
  if (o.scale()) result.scale = 1;
  if (o.bias()) result.bias = o.scale() ? 2 : 1;
  return result;
}

}  // namespace

DenseOptions::operator BlockPtr() const { return std::make_shared<const Dense>(*this); }

Dense::Dense(DenseOptions options) : options_(std::move(options)) {
  detail::check_options("Dense", options_);
  TORCH_CHECK_VALUE(!options_.bias_init() || options_.bias(), "nsn::Dense: bias_init is ",
                    *options_.bias_init(), ", but bias is false. Leave out bias_init.");
  checked_numel({options_.out_features(), options_.in_features()}, "the weight of Dense");
}

std::string Dense::options_json() const { return detail::write_options(options_, kDenseDefaults); }

std::vector<ParameterSpec> Dense::parameters() const {
  const int64_t rows = (is_gated(options_.activation()) ? 2 : 1) * options_.out_features();
  const Parts& own = options_.per_subnetwork();
  std::vector<ParameterSpec> result{{"weight", {rows, options_.in_features()}}};
  if (options_.scale()) result.push_back({"scale", {rows}, false, own.count("scale") > 0});
  if (options_.bias()) result.push_back({"bias", {rows}, false, own.count("bias") > 0});
  return result;
}

std::vector<Dimension> Dense::dimensions() const {
  return {{"out", options_.out_features(), 1, -1}};
}

Fit Dense::fit(const Signal& input, const BlockUse& use) const {
  const auto in = input.layout.empty() ? std::nullopt
                                       : detail::reads(input.layout.back(), options_.in_features());
  if (!in || input.is_integral) {
    misfit("floating (*, " + std::to_string(options_.in_features()) + "), its in_features", input);
  }
  const Axis out(options_.out_features(), use.width_of("out", options_.out_features()));
  const Axis rows = detail::rows_axis(out, is_gated(options_.activation()));
  Fit result{use, input, input, {{rows, *in}}, 0, {}};
  result.output.layout.back() = out;
  for (size_t i = 1; i < parameters().size(); ++i) result.slices.push_back({rows});
  result.flops = detail::saturating_product({2, rows.kept(), detail::kept_numel(input.layout)});
  return result;
}

Lanes Dense::joint(Lanes inputs, const BlockPass& pass) const {
  return detail::product(inputs, pass, detail::kWeight, epilogue_of(options_),
                         pass.first_of_way(&LanePass::input_way), pass.memory);
}

size_t Dense::lower(Lowering& to, size_t x) const {
  return detail::lower_product(to, "linear", x, detail::kWeight, epilogue_of(options_));
}

BlockPtr Dense::narrowed(const Fit& fit) const {
  DenseOptions options = options_;
  options.in_features(fit.slices[detail::kWeight][1].kept());
  options.out_features(fit.output.layout.back().kept());
  options.dropout(fit.use.dropout.value_or(options.dropout())).per_subnetwork({});
  return options;
}

void Dense::initialize(at::TensorList parameters) const {
  const at::Tensor scale = options_.scale() ? parameters[1] : at::Tensor();
  const at::Tensor bias = options_.bias() ? parameters.back() : at::Tensor();
  detail::initialize_layer(parameters[detail::kWeight], bias, scale, options_.weight_init(),
                           options_.bias_init(), options_.in_features(), options_.out_features());
}

void Dense::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kDenseDefaults);
}

detail::BlockType detail::block_type_Dense() { return block_type("Dense", kDenseDefaults); }

}  // namespace nsn
