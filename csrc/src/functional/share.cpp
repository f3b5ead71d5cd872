#include "nsn/functional/share.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/constant_pad_nd.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <numeric>

#include "autograd.h"

namespace nsn::functional {

using detail::AutogradContext;
using detail::variable_list;

namespace {

struct ShareSpec {
  std::vector<merge::Slice> slices;
  std::vector<merge::Lane> lanes;
  merge::Rule rule;
  std::vector<int64_t> shape;
};

at::Tensor leading(at::Tensor tensor, const merge::Slice& slice) {
  for (const size_t dim : c10::irange(slice.size())) {
    tensor = tensor.narrow(static_cast<int64_t>(dim), 0, slice[dim]);
  }
  return tensor;
}

variable_list share_forward(const at::Tensor& parameter, c10::ArrayRef<merge::Slice> slices) {
  variable_list result;
  // Views, not parts: an in-place update between forward and backward is then noticed.
  for (const merge::Slice& slice : slices) {
    at::Tensor lane = leading(parameter, slice);
    result.push_back(lane.is_same(parameter) ? parameter.view_symint(parameter.sym_sizes()) : lane);
  }
  return result;
}

struct ShareFunction : torch::autograd::Function<ShareFunction> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& parameter,
                               const ShareSpec& spec) {
    ctx->set_materialize_grads(false);
    detail::keep(ctx, spec);
    return share_forward(parameter, spec.slices);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto& spec = detail::kept<ShareSpec>(ctx);
    if (!at::GradMode::is_enabled()) {
      return {merge::apply(spec.rule, spec.lanes, spec.slices, gradients, spec.shape), {}};
    }
    if (detail::is_plain_derivative(spec.rule, spec.lanes))
      return {padded_sum(spec, gradients), {}};
    at::Tensor merged;
    {
      const at::NoGradGuard no_grad;
      merged = merge::apply(spec.rule, spec.lanes, spec.slices, gradients, spec.shape);
    }
    return {
        detail::refuse_second_derivative(detail::why_refused(spec.rule), {merged}, gradients)[0],
        {}};
  }

  /// The sum of the lanes' gradients by operations that autograd can differentiate again.
  static at::Tensor padded_sum(const ShareSpec& spec, const variable_list& gradients) {
    at::Tensor total;
    for (const at::Tensor& gradient : gradients) {
      if (!gradient.defined()) continue;
      std::vector<int64_t> padding;
      for (auto dim = static_cast<int64_t>(spec.shape.size()) - 1; dim >= 0; --dim) {
        padding.push_back(0);
        padding.push_back(spec.shape[dim] - gradient.size(dim));
      }
      const at::Tensor padded = at::constant_pad_nd(gradient, padding);
      total = total.defined() ? total + padded : padded;
    }
    return total;
  }
};

void check_slices(const at::Tensor& parameter, c10::ArrayRef<merge::Slice> slices,
                  c10::ArrayRef<merge::Lane> lanes) {
  TORCH_CHECK_VALUE(parameter.defined(), "nsn::share: the parameter is undefined. Pass a tensor.");
  TORCH_CHECK_VALUE(!slices.empty(),
                    "nsn::share: expected at least one slice, but got none. Give "
                    "one slice for each lane.");
  TORCH_CHECK_VALUE(slices.size() == lanes.size(),
                    "nsn::share: expected one lane for each slice, "
                    "but got ",
                    lanes.size(), " lanes and ", slices.size(), " slices.");
  for (const merge::Slice& slice : slices) {
    bool fits = slice.size() == static_cast<size_t>(parameter.dim());
    for (size_t dim = 0; fits && dim < slice.size(); ++dim) {
      fits = slice[dim] >= 1 && slice[dim] <= parameter.size(static_cast<int64_t>(dim));
    }
    TORCH_CHECK_VALUE(fits, "nsn::share: slice ", at::IntArrayRef(slice),
                      " does not fit the parameter of shape ", parameter.sizes(),
                      ". Give one extent for each dimension, from 1 to the parameter's own.");
  }
}

}  // namespace

std::vector<at::Tensor> share(const at::Tensor& parameter, c10::ArrayRef<merge::Slice> slices,
                              const merge::Rule& rule, c10::ArrayRef<merge::Lane> lanes) {
  check_slices(parameter, slices, lanes);
  detail::check_transforms(parameter);
  if (!detail::is_recorded(parameter)) return share_forward(parameter, slices);
  return ShareFunction::apply(parameter,
                              ShareSpec{slices.vec(), lanes.vec(), rule, parameter.sizes().vec()});
}

}  // namespace nsn::functional

namespace nsn {

std::vector<at::Tensor> share(const at::Tensor& parameter, const std::vector<merge::Slice>& slices,
                              const merge::Rule& rule, const std::vector<std::string>& names) {
  TORCH_CHECK_VALUE(names.empty() || names.size() == slices.size(),
                    "nsn::share: expected one name for each slice, but got ", names.size(),
                    " names and ", slices.size(), " slices. Name all lanes or none.");
  std::vector<size_t> by_size(slices.size());
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(), [&](size_t a, size_t b) {
    return c10::multiply_integers(slices[a]) < c10::multiply_integers(slices[b]);
  });
  std::vector<merge::Lane> lanes(slices.size());
  for (const size_t rank : c10::irange(by_size.size())) {
    const size_t lane = by_size[rank];
    lanes[lane] = {names.empty() ? std::to_string(lane) : names[lane], static_cast<int64_t>(rank)};
  }
  return functional::share(parameter, slices, rule, lanes);
}

}  // namespace nsn
