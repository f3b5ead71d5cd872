#include "nsn/functional/share.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <c10/util/irange.h>

#include "operations/autograd.h"
#include "values/regions.h"

namespace nsn::functional {

using detail::AutogradContext;
using detail::variable_list;

namespace {

/// What `share` makes of a parameter: slices, leading in a view of it.
struct ShareSpec {
  SliceView view;
  /// The extents in which each lane gets its slice.
  std::vector<Shape> kept;
  std::vector<merge::Lane> lanes;
  merge::Rule rule;
  Shape shape;
};

variable_list share_forward(const at::Tensor& parameter, const ShareSpec& spec) {
  variable_list result;
  // Views, not parts: an in-place update between forward and backward is then noticed. (Where the
  // leading parts of several things are kept, and brought together by a copy, it may be missed.)
  for (const size_t i : c10::irange(spec.kept.size())) {
    result.push_back(
        merge::slice_of_view(parameter, spec.view.view, spec.view.slices[i], spec.kept[i]));
  }
  return result;
}

struct ShareFunction : torch::autograd::Function<ShareFunction> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& parameter,
                               const ShareSpec& spec) {
    ctx->set_materialize_grads(false);
    detail::keep(ctx, spec);
    variable_list lanes = share_forward(parameter, spec);
    for (at::Tensor& lane : lanes) {
      if (lane.is_same(parameter)) lane = parameter.view_symint(parameter.sym_sizes());
    }
    return lanes;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& given) {
    const auto& spec = detail::kept<ShareSpec>(ctx);
    variable_list gradients = given;
    for (const size_t i : c10::irange(gradients.size())) {
      if (gradients[i].defined()) gradients[i] = gradients[i].reshape(spec.view.slices[i]);
    }
    const auto merged = [&] {
      const at::Tensor result =
          merge::apply(spec.rule, spec.lanes, spec.view.slices, gradients, spec.view.view);
      return result.defined() ? result.reshape(spec.shape) : result;
    };
    if (!at::GradMode::is_enabled()) return {merged(), {}};
    if (merge::is_plain(spec.rule, spec.lanes, spec.view.slices, spec.view.view)) {
      return {padded_sum(spec, gradients), {}};
    }
    at::Tensor result;
    {
      const at::NoGradGuard no_grad;
      result = merged();
    }
    return {detail::refuse_second_derivative(detail::why_refused(spec.rule), {result}, given)[0],
            {}};
  }

  /// The sum of the lanes' gradients by operations that autograd can differentiate again.
  static at::Tensor padded_sum(const ShareSpec& spec, const variable_list& gradients) {
    at::Tensor total;
    for (const at::Tensor& gradient : gradients) {
      if (!gradient.defined()) continue;
      const at::Tensor padded = detail::pad_to(gradient, spec.view.view);
      total = total.defined() ? total + padded : padded;
    }
    return total.defined() ? total.reshape(spec.shape) : total;
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

variable_list share_as(const at::Tensor& parameter, ShareSpec spec) {
  detail::check_transforms(parameter);
  if (!detail::is_recorded(parameter)) return share_forward(parameter, spec);
  return ShareFunction::apply(parameter, spec);
}

}  // namespace

std::vector<at::Tensor> share(const at::Tensor& parameter, c10::ArrayRef<merge::Slice> slices,
                              const merge::Rule& rule, c10::ArrayRef<merge::Lane> lanes) {
  check_slices(parameter, slices, lanes);
  const Shape shape = parameter.sizes().vec();
  return share_as(parameter, {{shape, slices.vec()}, slices.vec(), lanes.vec(), rule, shape});
}

std::vector<at::Tensor> share_layouts(const at::Tensor& parameter,
                                      const std::vector<const Layout*>& layouts,
                                      const merge::Rule& rule, c10::ArrayRef<merge::Lane> lanes) {
  auto view = common_view(layouts);
  TORCH_CHECK_VALUE(view,
                    "nsn::share: the lanes' slices do not fit one view of the parameter of "
                    "shape ",
                    parameter.sizes(), ".");
  std::vector<Shape> kept;
  for (const Layout* layout : layouts) kept.push_back(kept_shape(*layout));
  return share_as(parameter,
                  {std::move(*view), std::move(kept), lanes.vec(), rule, parameter.sizes().vec()});
}

}  // namespace nsn::functional

namespace nsn {

std::vector<at::Tensor> share(const at::Tensor& parameter, const std::vector<merge::Slice>& slices,
                              const merge::Rule& rule, const std::vector<std::string>& names) {
  TORCH_CHECK_VALUE(names.empty() || names.size() == slices.size(),
                    "nsn::share: expected one name for each slice, but got ", names.size(),
                    " names and ", slices.size(), " slices. Name all lanes or none.");
  std::vector<merge::Lane> lanes;
  for (const size_t lane : c10::irange(slices.size())) {
    lanes.push_back({names.empty() ? std::to_string(lane) : names[lane],
                     c10::multiply_integers(slices[lane]), lane});
  }
  return functional::share(parameter, slices, rule, lanes);
}

}  // namespace nsn
