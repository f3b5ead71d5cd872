#include "values/nonlinear.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "values/regions.h"

namespace nsn::merge {

namespace {

/// What two slices have in common: a leading part too.
Slice common(const Slice& a, const Slice& b) {
  Slice result;
  for (const size_t dim : c10::irange(a.size())) result.push_back(std::min(a[dim], b[dim]));
  return result;
}

double product(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) * b.to(at::kDouble)).sum().item<double>();
}

/// Of each lane the root mean square of its gradient; 0 where one is not finite, and where beside
/// the largest it is no more than rounding. (A bias in front of a norm has no gradient, but what is
/// rounded has a direction.)
std::vector<double> sizes_of(const std::vector<LaneGradient>& gradients) {
  std::vector<double> sizes;
  for (const LaneGradient& lane : gradients) {
    const auto numel = static_cast<double>(std::max<int64_t>(1, lane.gradient.numel()));
    sizes.push_back(std::sqrt(product(lane.gradient, lane.gradient) / numel));
  }
  const double rounding = gradients[0].gradient.scalar_type() == at::kDouble
                              ? std::numeric_limits<double>::epsilon()
                              : std::numeric_limits<float>::epsilon();
  const double least = 1000.0 * rounding * *std::max_element(sizes.begin(), sizes.end());
  if (!std::isfinite(least)) return std::vector<double>(sizes.size(), 0.0);
  for (double& size : sizes) size = size > least ? size : 0.0;
  return sizes;
}

/// The sum of the lanes' gradients, each in its slice, in the parameter's shape.
at::Tensor added(const std::vector<LaneGradient>& lanes, const std::vector<at::Tensor>& gradients) {
  at::Tensor result = at::zeros(lanes[0].parameter_shape, gradients[0].options());
  for (const size_t i : c10::irange(lanes.size())) {
    leading(result, lanes[i].slice).add_(gradients[i]);
  }
  return result;
}

}  // namespace

at::Tensor merge_by_surgery(const std::vector<LaneGradient>& gradients) {
  const std::vector<double> sizes = sizes_of(gradients);
  std::vector<at::Tensor> cut;
  for (const LaneGradient& lane : gradients) {
    at::Tensor own = lane.gradient;
    // Who is against it, and how much of it lies that way: the order depends on nothing else.
    std::vector<std::pair<double, const LaneGradient*>> against;
    for (const size_t i : c10::irange(gradients.size())) {
      const LaneGradient& other = gradients[i];
      if (&other == &lane || sizes[i] == 0.0) continue;
      const Slice both = common(lane.slice, other.slice);
      const at::Tensor theirs = leading(other.gradient, both), ours = leading(own, both);
      const double dot = product(ours, theirs);
      if (dot < 0.0) against.emplace_back(dot / std::sqrt(product(theirs, theirs)), &other);
    }
    std::sort(against.begin(), against.end(),
              [](const auto& a, const auto& b) { return a.first < b.first; });
    bool is_copy = false;
    for (const auto& [length, other] : against) {
      const Slice both = common(lane.slice, other->slice);
      const at::Tensor theirs = leading(other->gradient, both);
      const double dot = product(leading(own, both), theirs);
      if (dot >= 0.0) continue;  // what was cut before took it away
      if (!is_copy) own = own.clone();
      is_copy = true;
      leading(own, both).sub_(theirs, dot / product(theirs, theirs));
    }
    cut.push_back(std::move(own));
  }
  return added(gradients, cut);
}

at::Tensor merge_with_equal_norms(const std::vector<LaneGradient>& gradients) {
  // By the square's mean, so that a narrow lane counts as much in its slice as a wide one.
  const std::vector<double> sizes = sizes_of(gradients);
  double total = 0.0;
  int64_t counted = 0;
  for (const double size : sizes) {
    total += size;
    counted += size > 0.0 ? 1 : 0;
  }
  std::vector<at::Tensor> scaled;
  at::Tensor lanes = at::zeros(gradients[0].parameter_shape, gradients[0].gradient.options());
  for (const size_t i : c10::irange(gradients.size())) {
    const double factor = sizes[i] > 0.0 ? total / static_cast<double>(counted) / sizes[i] : 1.0;
    scaled.push_back(gradients[i].gradient * factor);
    leading(lanes, gradients[i].slice).add_(1.0);
  }
  return added(gradients, scaled).div_(lanes.clamp_min_(1.0));
}

}  // namespace nsn::merge
