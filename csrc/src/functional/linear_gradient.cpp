#include "functional/linear_gradient.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "operations/lanes.h"
#include "operations/products.h"
#include "operations/workspace.h"
#include "values/regions.h"

namespace nsn::detail {

namespace {

/// A part of the merged gradient: coefficient * dy^T x, in the leading (dy columns, x columns).
struct Term {
  at::Tensor dy, x;
  double coefficient;
  size_t lane;
};

/// The columns of a matrix as the view of the weight's rows has them.
at::Tensor with_rows(const at::Tensor& matrix, const Shape& slice) {
  std::vector<int64_t> sizes = slice;
  sizes.insert(sizes.begin(), matrix.size(0));
  return matrix.view(sizes);
}

/// Writes the sum of the terms' products into the leading parts of one new buffer.
at::Tensor sum_of_products(std::vector<Term> terms, const Shape& shape,
                           const functional::Memory& memory, const at::TensorOptions& options) {
  const auto size = [](const Term& term) { return term.dy.size(1) * term.x.size(1); };
  std::stable_sort(terms.begin(), terms.end(),
                   [&](const Term& a, const Term& b) { return size(a) > size(b); });
  const bool covered =
      !terms.empty() && terms[0].dy.size(1) == shape[0] && terms[0].x.size(1) == shape[1];
  at::Tensor result = empty_in({memory.workspace}, shape, options);
  if (!covered) result.zero_();
  for (size_t first = 0; first < terms.size();) {
    const int64_t out = terms[first].dy.size(1), in = terms[first].x.size(1);
    std::vector<at::Tensor> dy, x;
    size_t end = first;
    bool uniform = true;
    for (; end < terms.size() && terms[end].dy.size(1) == out && terms[end].x.size(1) == in;
         ++end) {
      uniform = uniform && terms[end].coefficient == terms[first].coefficient;
    }
    for (const size_t i : c10::irange(first, end)) {
      dy.push_back(uniform ? terms[i].dy : at::mul(terms[i].dy, terms[i].coefficient));
      x.push_back(terms[i].x);
    }
    const at::Tensor target = merge::leading(result, {out, in});
    const double alpha = uniform ? terms[first].coefficient : 1.0;
    if (covered && first == 0 && alpha == 1.0) {
      multiply(target, stack_rows(dy).t(), stack_rows(x));
    } else if (covered && first == 0) {
      at::Tensor whole = target;
      at::addmm_out(whole, whole, stack_rows(dy).t(), stack_rows(x), /*beta=*/0, alpha);
    } else {
      add_product(target, stack_rows(dy).t(), stack_rows(x), alpha);
    }
    first = end;
  }
  return result;
}

}  // namespace

at::Tensor merge_weight(const LinearSpec& spec, const Shape& shape, const LaneRows& rows,
                        const at::TensorOptions& options) {
  const size_t count = rows.dy.size();
  const auto [regions, coefficients, scales_regions] =
      merge::lane_coefficients(spec.rule, spec.lanes, spec.weight.slices, spec.weight.view);
  if (!spec.rule.is_linear() || (!spec.is_leading() && !coefficients)) {
    std::vector<at::Tensor> gradients(count);
    for (const size_t lane : c10::irange(count)) {
      if (!rows.dy[lane].defined()) continue;
      gradients[lane] = at::mm(rows.dy[lane].t(), rows.x[lane]).reshape(spec.weight.slices[lane]);
    }
    return merge::apply(spec.rule, spec.lanes, spec.weight.slices, gradients, spec.weight.view)
        .reshape(shape);
  }
  if (!coefficients) {
    // Coefficients that change from region to region, and from lane to lane in one.
    at::Tensor result = empty_in({spec.memory.workspace}, shape, options).zero_();
    for (const merge::Region& region : regions) {
      at::Tensor target = merge::box(result, region.begin, region.end);
      for (const size_t i : c10::irange(region.lanes.size())) {
        const size_t lane = region.lanes[i];
        if (!rows.dy[lane].defined() || region.coefficients[i] == 0.0) continue;
        const auto columns = [&](const at::Tensor& matrix, size_t dim) {
          return matrix.narrow(1, region.begin[dim], region.end[dim] - region.begin[dim]);
        };
        at::addmm_out(target, target, columns(rows.dy[lane], 0).t(), columns(rows.x[lane], 1),
                      /*beta=*/1, /*alpha=*/region.coefficients[i]);
      }
    }
    return result;
  }
  std::vector<Term> terms;
  for (const Source& source : spec.sources) {
    std::vector<size_t> counted;
    for (const size_t lane : source.lanes) {
      if (rows.dy[lane].defined() && (*coefficients)[lane] != 0.0) counted.push_back(lane);
    }
    if (counted.empty()) continue;
    const size_t first = *std::max_element(counted.begin(), counted.end(), [&](size_t a, size_t b) {
      return spec.out[a] < spec.out[b];
    });
    if (counted.size() == 1) {
      terms.push_back({rows.dy[first], rows.x[first], (*coefficients)[first], first});
      continue;
    }
    // Lanes of one input: their dY are added up before the one product, each times its coefficient;
    // one that all have comes behind.
    const double scale = (*coefficients)[first];
    const std::vector<double>& of_lanes = *coefficients;  // not a binding, for the lambda
    const bool uniform = std::all_of(counted.begin(), counted.end(),
                                     [&](size_t lane) { return of_lanes[lane] == scale; });
    at::Tensor total = empty_in({spec.memory.workspace}, rows.dy[first].sizes(), options);
    if (uniform) {
      total.copy_(rows.dy[first]);
    } else {
      at::mul_out(total, rows.dy[first], at::scalar_tensor(scale, options));
    }
    const at::Tensor target = with_rows(total, spec.bias.slices[first]);
    for (const size_t lane : counted) {
      if (lane == first) continue;
      std::vector<int64_t> extents = spec.bias.slices[lane];
      extents.insert(extents.begin(), total.size(0));
      merge::leading(target, extents)
          .add_(with_rows(rows.dy[lane], spec.bias.slices[lane]),
                uniform ? 1.0 : (*coefficients)[lane]);
    }
    terms.push_back({total, rows.x[first], uniform ? scale : 1.0, first});
  }
  at::Tensor result;
  if (spec.is_leading()) {
    result = sum_of_products(std::move(terms), shape, spec.memory, options);
  } else {
    // Parts that lie apart are added to theirs after the product.
    result = at::zeros(spec.weight.view, options);
    for (const Term& term : terms) {
      const Shape& slice = spec.weight.slices[term.lane];
      merge::leading(result, slice)
          .add_(at::mm(term.dy.t(), term.x).reshape(slice), term.coefficient);
    }
  }
  if (scales_regions) merge::scale_regions(result, regions);
  return result.view(shape);
}

at::Tensor merge_bias(const LinearSpec& spec, int64_t features, const LaneRows& rows) {
  const bool all_whole =
      std::all_of(spec.out.begin(), spec.out.end(), [&](int64_t out) { return out == features; });
  if (all_whole && spec.rule.is_linear()) {
    // One sum over all rows that count, where one coefficient serves them.
    const auto coefficients = spec.rule.coefficients(spec.lanes);
    std::vector<at::Tensor> counted;
    std::optional<double> scale;
    bool uniform = true;
    for (const size_t lane : c10::irange(rows.dy.size())) {
      if (!rows.dy[lane].defined() || coefficients[lane] == 0.0) continue;
      uniform = uniform && scale.value_or(coefficients[lane]) == coefficients[lane];
      scale = coefficients[lane];
      counted.push_back(rows.dy[lane]);
    }
    if (scale && uniform) {
      at::Tensor sum = at::sum(stack_rows(counted), {0});
      return *scale == 1.0 ? sum : sum.mul_(*scale);
    }
  }
  std::vector<at::Tensor> sums(rows.dy.size());
  for (const size_t lane : c10::irange(rows.dy.size())) {
    if (!rows.dy[lane].defined()) continue;
    sums[lane] = at::sum(rows.dy[lane], {0}).reshape(spec.bias.slices[lane]);
  }
  return merge::apply(spec.rule, spec.lanes, spec.bias.slices, sums, spec.bias.view)
      .reshape({features});
}

}  // namespace nsn::detail
