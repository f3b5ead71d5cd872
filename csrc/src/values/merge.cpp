#include "nsn/values/merge.h"

#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

#include "values/nonlinear.h"
#include "values/regions.h"
#include "values/rules.h"

namespace nsn::merge {

struct Rule::Definition {
  const KnownRule* entry;
  std::string name;
  Weights weights;         // where the entry takes them
  MergeFunction function;  // where it takes one; not set where the function is missing
};

struct Factory {
  static Rule make(Rule::Definition definition) {
    return Rule(std::make_shared<const Rule::Definition>(std::move(definition)));
  }
};

Rule::Rule(std::shared_ptr<const Definition> definition) : definition_(std::move(definition)) {}

const std::string& Rule::name() const { return definition_->name; }

bool Rule::is_linear() const { return definition_->entry->coefficients != nullptr; }

bool Rule::is_builtin() const { return definition_->entry->takes != Takes::kFunction; }

bool Rule::is_missing() const { return !is_builtin() && !definition_->function; }

const std::vector<std::pair<std::string, double>>& Rule::weights() const {
  return definition_->weights;
}

at::Tensor LaneGradient::padded() const {
  const at::Tensor result = at::zeros(parameter_shape, gradient.options());
  leading(result, slice).copy_(gradient);
  return result;
}

const MergeFunction& Rule::merge_function() const { return definition_->function; }

std::vector<double> Rule::coefficients(c10::ArrayRef<Lane> lanes) const {
  TORCH_CHECK_VALUE(is_linear(), "nsn: merge rule '", name(),
                    "' is a function of the gradients and has no coefficients. Leave out `of`, or "
                    "use a linear rule, such as mean().");
  return definition_->entry->coefficients(lanes, definition_->weights);
}

at::Tensor Rule::call(const std::vector<LaneGradient>& gradients) const {
  TORCH_CHECK_VALUE(!is_missing(), "nsn: merge rule '", name(),
                    "' is a function that the file it was read from cannot hold. Pass the function "
                    "when loading: rules = {'",
                    name(), "': merge::function(...)}.");
  TORCH_CHECK_VALUE(!is_linear(), "nsn: merge rule '", name(), "' is linear; use apply().");
  at::Tensor merged =
      is_builtin() ? definition_->entry->merge(gradients) : definition_->function(gradients);
  const Slice& shape = gradients.front().parameter_shape;
  TORCH_CHECK_VALUE(merged.defined(), "nsn: merge rule '", name(),
                    "' returned no tensor. Return the merged gradient, of shape ",
                    at::IntArrayRef(shape), ".");
  TORCH_CHECK_VALUE(merged.sizes() == at::IntArrayRef(shape), "nsn: merge rule '", name(),
                    "' returned a gradient of shape ", merged.sizes(),
                    ", but the parameter has shape ", at::IntArrayRef(shape),
                    ". Return it in the parameter's full shape, parameter_shape.");
  return merged;
}

namespace {

/// The positions of `lanes` from the smallest to the largest.
std::vector<size_t> by_size(c10::ArrayRef<Lane> lanes) {
  std::vector<size_t> order(lanes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lanes[a].is_smaller_than(lanes[b]); });
  return order;
}

/// 1/n for each of the `most` smallest lanes, n being how many of them there are; 0 for the rest.
std::vector<double> mean_of_smallest(c10::ArrayRef<Lane> lanes, size_t most) {
  std::vector<double> result(lanes.size(), 0.0);
  const size_t count = std::min(most, lanes.size());
  const auto order = by_size(lanes);
  for (const size_t i : c10::irange(count)) {
    result[order[i]] = 1.0 / static_cast<double>(count);
  }
  return result;
}

std::vector<double> ones(c10::ArrayRef<Lane> lanes, const Weights& /*weights*/) {
  return std::vector<double>(lanes.size(), 1.0);
}

std::vector<double> equal(c10::ArrayRef<Lane> lanes, const Weights& /*weights*/) {
  return mean_of_smallest(lanes, lanes.size());
}

std::vector<double> two_smallest(c10::ArrayRef<Lane> lanes, const Weights& /*weights*/) {
  return mean_of_smallest(lanes, 2);
}

std::vector<double> smallest(c10::ArrayRef<Lane> lanes, const Weights& /*weights*/) {
  return mean_of_smallest(lanes, 1);
}

std::vector<double> by_name(c10::ArrayRef<Lane> lanes, const Weights& weights) {
  std::vector<double> result;
  result.reserve(lanes.size());
  for (const Lane& lane : lanes) {
    const auto found = std::find_if(weights.begin(), weights.end(),
                                    [&](const auto& weight) { return weight.first == lane.name; });
    TORCH_CHECK_VALUE(found != weights.end(),
                      "nsn::merge::weighted: no coefficient for sub-network '", lane.name,
                      "', which uses the parameter. Add one; 0 drops its gradient.");
    result.push_back(found->second);
  }
  return result;
}

// Those that take something come last.
constexpr KnownRule kRules[] = {
    {"sum", "the plain derivative of the summed loss", Takes::kNothing, ones, nullptr},
    {"mean", "the mean over the lanes that cover the element", Takes::kNothing, equal, nullptr},
    {"two_smallest_mean", "the mean of the two smallest lanes, larger ones dropped",
     Takes::kNothing, two_smallest, nullptr},
    {"owner", "the gradient of the smallest lane alone", Takes::kNothing, smallest, nullptr},
    {"gradient_surgery", "the sum of the gradients without what conflicts with another one",
     Takes::kNothing, nullptr, merge_by_surgery},
    {"equal_norms", "the mean of the gradients, each scaled to the same size", Takes::kNothing,
     nullptr, merge_with_equal_norms},
    {"weighted", "a coefficient for each sub-network, not divided by their sum", Takes::kWeights,
     by_name, nullptr},
    {"function", "any function of the lanes' gradients, linear or not", Takes::kFunction, nullptr,
     nullptr},
};

const KnownRule& entry_of(const char* name) {
  const KnownRule* found = find_rule(name);
  TORCH_INTERNAL_ASSERT(found != nullptr, name);
  return *found;
}

}  // namespace

c10::ArrayRef<KnownRule> known_rules() { return kRules; }

const KnownRule* find_rule(const std::string& name) {
  const auto* found = std::find_if(std::begin(kRules), std::end(kRules),
                                   [&](const KnownRule& rule) { return rule.name == name; });
  return found == std::end(kRules) ? nullptr : found;
}

Rule make_rule(const KnownRule& entry) { return Factory::make({&entry, entry.name, {}, nullptr}); }

Rule sum() { return make_rule(entry_of("sum")); }

Rule mean() { return make_rule(entry_of("mean")); }

Rule two_smallest_mean() { return make_rule(entry_of("two_smallest_mean")); }

Rule owner() { return make_rule(entry_of("owner")); }

Rule gradient_surgery() { return make_rule(entry_of("gradient_surgery")); }

Rule equal_norms() { return make_rule(entry_of("equal_norms")); }

Rule weighted(Weights weights) {
  TORCH_CHECK_VALUE(!weights.empty(),
                    "nsn::merge::weighted: expected a coefficient for each sub-network, but got "
                    "none. Name them: weighted({{\"base\", 0.5}, ...}).");
  for (const size_t i : c10::irange(weights.size())) {
    TORCH_CHECK_VALUE(std::isfinite(weights[i].second),
                      "nsn::merge::weighted: the coefficient of "
                      "sub-network '",
                      weights[i].first, "' must be finite, but is ", weights[i].second, ".");
    for (const size_t j : c10::irange(i)) {
      TORCH_CHECK_VALUE(weights[i].first != weights[j].first, "nsn::merge::weighted: sub-network '",
                        weights[i].first, "' is named twice. Give it one coefficient.");
    }
  }
  return Factory::make({&entry_of("weighted"), "weighted", std::move(weights), nullptr});
}

Rule function(std::string name, MergeFunction function) {
  TORCH_CHECK_VALUE(static_cast<bool>(function), "nsn::merge::function: '", name,
                    "' holds no function. Pass one, for example a lambda.");
  return Factory::make({&entry_of("function"), std::move(name), {}, std::move(function)});
}

Rule missing_function(std::string name) {
  return Factory::make({&entry_of("function"), std::move(name), {}, nullptr});
}

std::vector<Region> regions(const Rule& rule, c10::ArrayRef<Lane> lanes,
                            c10::ArrayRef<Slice> slices, at::IntArrayRef shape) {
  std::vector<Region> result{{{}, {}, std::vector<size_t>(slices.size()), {}}};
  std::iota(result[0].lanes.begin(), result[0].lanes.end(), size_t{0});
  for (const size_t dim : c10::irange(shape.size())) {
    std::vector<int64_t> borders;
    for (const Slice& slice : slices) borders.push_back(slice[dim]);
    std::sort(borders.begin(), borders.end());
    borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
    std::vector<Region> finer;
    for (const Region& region : result) {
      int64_t begin = 0;
      for (const int64_t end : borders) {
        Region cell{region.begin, region.end, {}, {}};
        for (const size_t lane : region.lanes) {
          if (slices[lane][dim] >= end) cell.lanes.push_back(lane);
        }
        cell.begin.push_back(begin);
        cell.end.push_back(end);
        if (!cell.lanes.empty()) finer.push_back(std::move(cell));
        begin = end;
      }
    }
    result = std::move(finer);
  }
  for (Region& region : result) {
    std::vector<Lane> covering;
    for (const size_t lane : region.lanes) covering.push_back(lanes[lane]);
    region.coefficients = rule.coefficients(covering);
  }
  return result;
}

at::Tensor box(const at::Tensor& tensor, const Slice& begin, const Slice& end) {
  at::Tensor result = tensor;
  for (const size_t i : c10::irange(begin.size())) {
    const auto dim = static_cast<int64_t>(i);
    if (begin[i] == 0 && end[i] == tensor.size(dim)) continue;
    result = result.narrow(dim, begin[i], end[i] - begin[i]);
  }
  return result;
}

at::Tensor leading(const at::Tensor& tensor, const Slice& slice) {
  return box(tensor, Slice(slice.size(), 0), slice);
}

void scale_regions(const at::Tensor& merged, const std::vector<Region>& regions) {
  for (const Region& region : regions) {
    const double scale = region.coefficients[0];
    if (scale != 1.0) box(merged, region.begin, region.end).mul_(scale);
  }
}

at::Tensor slice_of_view(const at::Tensor& tensor, at::IntArrayRef view, const Slice& slice,
                         at::IntArrayRef kept) {
  const at::Tensor result = leading(tensor.sizes() == view ? tensor : tensor.view(view), slice);
  return result.sizes() == kept ? result : result.reshape(kept);
}

namespace {

/// Whether all lanes have one coefficient in each region.
bool are_uniform(const std::vector<Region>& regions) {
  return std::all_of(regions.begin(), regions.end(), [](const Region& region) {
    return std::all_of(region.coefficients.begin(), region.coefficients.end(),
                       [&](double c) { return c == region.coefficients[0]; });
  });
}

/// For each of `lanes` lanes the one coefficient that it has in all its regions; nothing if some
/// lane has several.
std::optional<std::vector<double>> constant_coefficients(const std::vector<Region>& regions,
                                                         size_t lanes) {
  std::vector<std::optional<double>> found(lanes);
  for (const Region& region : regions) {
    for (const size_t i : c10::irange(region.lanes.size())) {
      auto& coefficient = found[region.lanes[i]];
      if (coefficient && *coefficient != region.coefficients[i]) return std::nullopt;
      coefficient = region.coefficients[i];
    }
  }
  std::vector<double> result;
  for (const auto& coefficient : found) result.push_back(coefficient.value_or(0.0));
  return result;
}

}  // namespace

bool is_plain(const Rule& rule, c10::ArrayRef<Lane> lanes, c10::ArrayRef<Slice> slices,
              at::IntArrayRef shape) {
  if (!rule.is_linear()) return false;
  const auto all = regions(rule, lanes, slices, shape);
  return std::all_of(all.begin(), all.end(), [](const Region& region) {
    return std::all_of(region.coefficients.begin(), region.coefficients.end(),
                       [](double c) { return c == 1.0; });
  });
}

LaneCoefficients lane_coefficients(const Rule& rule, c10::ArrayRef<Lane> lanes,
                                   c10::ArrayRef<Slice> slices, at::IntArrayRef shape) {
  LaneCoefficients result;
  if (!rule.is_linear()) return result;
  result.regions = regions(rule, lanes, slices, shape);
  result.of_lanes = constant_coefficients(result.regions, lanes.size());
  result.scales_regions = !result.of_lanes && are_uniform(result.regions);
  if (result.scales_regions) result.of_lanes = std::vector<double>(lanes.size(), 1.0);
  return result;
}

at::Tensor apply(const Rule& rule, c10::ArrayRef<Lane> lanes, c10::ArrayRef<Slice> slices,
                 at::TensorList gradients, at::IntArrayRef shape) {
  const auto some = std::find_if(gradients.begin(), gradients.end(),
                                 [](const at::Tensor& gradient) { return gradient.defined(); });
  if (some == gradients.end()) return {};
  const auto options = some->options();

  if (!rule.is_linear()) {
    std::vector<LaneGradient> arguments;
    for (const size_t lane : c10::irange(lanes.size())) {
      const at::Tensor& gradient = gradients[lane];
      arguments.push_back({lanes[lane].name, slices[lane],
                           gradient.defined() ? gradient : at::zeros(slices[lane], options),
                           shape.vec()});
    }
    return rule.call(arguments);
  }

  at::Tensor merged = at::zeros(shape, options);
  for (const Region& region : regions(rule, lanes, slices, shape)) {
    at::Tensor target = box(merged, region.begin, region.end);
    for (const size_t i : c10::irange(region.lanes.size())) {
      const at::Tensor& gradient = gradients[region.lanes[i]];
      if (gradient.defined() && region.coefficients[i] != 0.0) {
        target.add_(box(gradient, region.begin, region.end), region.coefficients[i]);
      }
    }
  }
  return merged;
}

}  // namespace nsn::merge
