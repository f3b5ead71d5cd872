#include "nsn/blocks/batch_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/zeros.h>
#include <c10/util/irange.h>

#include <ostream>
#include <utility>

#include "blocks/affine.h"
#include "blocks/builtin.h"
#include "blocks/options.h"
#include "blocks/support.h"
#include "nsn/blocks/lowering.h"
#include "operations/batch_norm.h"
#include "values/regions.h"

namespace nsn {

// Found by the type of the options, which an unnamed namespace would prevent.
static void list_options(const BatchNormOptions& options, const BatchNormOptions& defaults,
                         detail::OptionVisitor& visitor) {
  visitor.required("features", options.features(),
                   "the number of channels, or features, of the input", detail::at_least(1));
  visitor.optional("eps", options.eps(), defaults.eps(), detail::doc::kEps);
  visitor.optional("momentum", options.momentum(), defaults.momentum(),
                   "the step of the running statistics towards the batch's", detail::between(0, 1));
  visitor.optional("affine", options.affine(), defaults.affine(), detail::doc::kAffine);
  visitor.optional("track", options.track(), defaults.track(),
                   "whether a training pass updates the running statistics");
  visitor.optional("per_subnetwork", options.per_subnetwork(), defaults.per_subnetwork(),
                   detail::doc::kPerSubnetwork,
                   detail::parts({{"affine", options.affine()}, {"statistics", true}}));
}

namespace {

using detail::affine;
using detail::affine_operands;
using detail::fit_first;
using detail::start_affine;

const BatchNormOptions kBatchNormDefaults(1);

}  // namespace

BatchNormOptions::operator BlockPtr() const { return std::make_shared<const BatchNorm>(*this); }

BatchNorm::BatchNorm(BatchNormOptions options) : options_(std::move(options)) {
  detail::check_options("BatchNorm", options_);
}

std::string BatchNorm::options_json() const {
  return detail::write_options(options_, kBatchNormDefaults);
}

std::vector<ParameterSpec> BatchNorm::parameters() const {
  std::vector<ParameterSpec> result;
  if (options_.affine()) {
    result = affine(options_.features(), /*has_bias=*/true, options_.per_subnetwork());
  }
  const bool is_private = options_.per_subnetwork().count("statistics") > 0;
  const Shape features{options_.features()};
  result.push_back({"running_mean", features, false, is_private, /*is_buffer=*/true});
  result.push_back({"running_var", features, false, is_private, /*is_buffer=*/true});
  ParameterSpec counter{"num_batches_tracked", {},       false, is_private,
                        /*is_buffer=*/true,    at::kLong};
  counter.counts_batches = true;
  result.push_back(std::move(counter));
  return result;
}

Fit BatchNorm::fit(const Signal& input, const BlockUse& use) const {
  Fit result = fit_first(input, use, options_.features(), parameters().size(), "features");
  result.slices.back() = {};  // the counter
  return result;
}

Lanes BatchNorm::joint(Lanes inputs, const BlockPass& pass) const {
  const size_t statistics = options_.affine() ? 2 : 0;
  const auto weights = options_.affine() ? pass.share(0) : std::vector<at::Tensor>();
  const auto biases = options_.affine() ? pass.share(1) : std::vector<at::Tensor>();
  const bool by_batch = pass.training || pass.calibrating;
  const bool updates = pass.calibrating || (pass.training && options_.track());
  Lanes outputs;
  std::vector<at::Tensor> means, variances;
  const auto running_means = by_batch ? std::vector<at::Tensor>() : pass.share(statistics);
  const auto running_variances = by_batch ? std::vector<at::Tensor>() : pass.share(statistics + 1);
  for (const size_t lane : c10::irange(inputs.size())) {
    const at::Tensor& x = inputs[lane];
    const int64_t features = x.size(1);
    const at::Tensor weight = options_.affine() ? weights[lane].contiguous() : at::Tensor();
    const at::Tensor bias = options_.affine() ? biases[lane].contiguous() : at::Tensor();
    std::optional<at::Tensor> mean, variance;
    if (by_batch) {
      TORCH_CHECK_VALUE(x.numel() > features, "nsn::BatchNorm: block '", pass.path(),
                        "' needs more than one value for each feature in training, but got input "
                        "of shape ",
                        to_string(x.sizes().vec()), ". Use a larger batch.");
      if (detail::takes_batch_norm(x, weight, bias)) {
        auto normed = detail::batch_norm(x, weight, bias, options_.eps());
        outputs.push_back(std::move(normed.y));
        means.push_back(std::move(normed.mean));
        variances.push_back(std::move(normed.variance));
        continue;
      }
      if (updates) {
        // With momentum 1 they become the batch's own.
        const auto options = pass.parameter(statistics, lane).options();
        mean = means.emplace_back(at::zeros({features}, options));
        variance = variances.emplace_back(at::zeros({features}, options));
      }
    } else {
      // Parts of several groups lie apart, and torch's backward takes strided statistics wrongly.
      mean = running_means[lane].contiguous();
      variance = running_variances[lane].contiguous();
    }
    outputs.push_back(at::batch_norm(
        x, options_.affine() ? std::optional<at::Tensor>(weight) : std::nullopt,
        options_.affine() ? std::optional<at::Tensor>(bias) : std::nullopt, mean, variance,
        /*training=*/by_batch, /*momentum=*/1.0, options_.eps(), /*cudnn_enabled=*/true));
  }
  if (updates) update(means, variances, pass);
  return outputs;
}

void BatchNorm::update(const std::vector<at::Tensor>& means,
                       const std::vector<at::Tensor>& variances, const BlockPass& pass) const {
  const at::NoGradGuard no_grad;
  const size_t statistics = options_.affine() ? 2 : 0, counter = statistics + 2;
  const auto momentum = [&](const at::Tensor& count) {
    return pass.calibrating ? 1.0 / static_cast<double>(count.item<int64_t>() + 1)
                            : options_.momentum();
  };
  if (pass.lanes[0].parameters[statistics].is_private) {
    for (const size_t lane : c10::irange(means.size())) {
      const at::Tensor& count = pass.parameter(counter, lane);
      pass.parameter(statistics, lane).lerp_(means[lane], momentum(count));
      pass.parameter(statistics + 1, lane).lerp_(variances[lane], momentum(count));
      count.add_(1);
    }
    return;
  }
  const at::Tensor& count = pass.parameter(counter);
  std::vector<const Layout*> layouts;
  for (const LanePass& lane : pass.lanes) layouts.push_back(&lane.fit->slices[statistics]);
  const auto view = common_view(layouts);
  const auto move = [&](const at::Tensor& running, const std::vector<at::Tensor>& batch) {
    std::vector<at::Tensor> steps;
    const at::Tensor viewed = running.view(view->view);
    for (const size_t lane : c10::irange(batch.size())) {
      const auto& slice = view->slices[lane];
      steps.push_back(batch[lane].view(slice) - merge::leading(viewed, slice));
    }
    viewed.add_(merge::apply(merge::mean(), pass.merge_lanes(), view->slices, steps, view->view),
                momentum(count));
  };
  move(pass.parameter(statistics), means);
  move(pass.parameter(statistics + 1), variances);
  count.add_(1);
}

size_t BatchNorm::lower(Lowering& to, size_t x) const {
  const size_t statistics = options_.affine() ? 2 : 0;
  std::vector<Operand> operands = affine_operands(to, statistics);
  operands.push_back(to.operand(statistics, "running_mean"));
  operands.push_back(to.operand(statistics + 1, "running_var"));
  operands.push_back(to.operand(statistics + 2, "num_batches_tracked"));
  // Statistics that are not tracked stay as they are in a copy that is trained.
  const double momentum = options_.track() ? options_.momentum() : 0.0;
  return to.step("norm", primitives::BatchNorm{options_.eps(), momentum}, {x}, std::move(operands));
}

BlockPtr BatchNorm::narrowed(const Fit& fit) const {
  return BatchNormOptions(options_).features(fit.input.layout.front().kept()).per_subnetwork({});
}

void BatchNorm::initialize(at::TensorList parameters) const {
  const at::NoGradGuard no_grad;
  const size_t statistics = options_.affine() ? 2 : 0;
  if (options_.affine()) start_affine(parameters, /*has_bias=*/true);
  parameters[statistics].zero_();
  parameters[statistics + 1].fill_(1.0);
  parameters[statistics + 2].zero_();
}

void BatchNorm::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, kBatchNormDefaults);
}

namespace detail {

BlockType block_type_BatchNorm() { return block_type("BatchNorm", kBatchNormDefaults); }

}  // namespace detail
}  // namespace nsn
