#include "nsn/network/loss.h"

#include <ATen/core/Reduction.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <string>
#include <vector>

#include "nsn/values/layout.h"
#include "operations/cross_entropy.h"

namespace nsn {

namespace {

constexpr int64_t kIgnored = -100;  // torch's default ignore_index

/// Cross entropy of all outputs, stacked along the batch: sum_l w_l * mean over the batch.
at::Tensor stacked_cross_entropy(const std::vector<at::Tensor>& outputs, const at::Tensor& targets,
                                 const std::vector<double>& weights) {
  const auto lanes = static_cast<int64_t>(outputs.size());
  std::vector<int64_t> repeats(static_cast<size_t>(targets.dim()), 1);
  repeats[0] = lanes;
  const at::Tensor losses = at::cross_entropy_loss(at::cat(outputs), targets.repeat(repeats),
                                                   /*weight=*/{}, at::Reduction::None, kIgnored);
  const bool indices = !at::isFloatingType(targets.scalar_type());
  // One number a lane, then the mean as torch takes it: over what is not left out. Narrow dtypes
  // would overflow before the division.
  const auto dtype = losses.scalar_type();
  const auto computed = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor sums = losses.reshape({lanes, losses.numel() / lanes}).sum(1, false, computed);
  const at::Tensor coefficients = at::tensor(weights).to(sums.options());
  const at::Tensor total = sums.dot(coefficients);
  if (indices) return (total / targets.ne(kIgnored).sum()).to(dtype);
  return (total / (losses.numel() / lanes)).to(dtype);
}

/// What the default loss takes for `output`: classes in dimension 1. Class indices may also belong
/// to outputs that have their classes last, as a transformer's (B, T, C).
at::Tensor with_classes_second(const std::string& name, const at::Tensor& output,
                               const at::Tensor& targets) {
  const auto classes_are_one = [&](int64_t dim) {
    TORCH_CHECK_VALUE(output.size(dim) != 1, "nsn::joint_loss: output '", name, "' of shape ",
                      to_string(output.sizes().vec()),
                      " has one class, whose cross entropy is always 0. Name another loss=, for "
                      "example the binary cross entropy or the mean squared error.");
  };
  if (output.dim() == 0) return output;
  const int64_t dim = output.dim() == 1 ? 0 : 1;
  const bool indices = at::isIntegralType(targets.scalar_type(), /*includeBool=*/false);
  const bool may_be_last = output.dim() > 2 && indices && targets.dim() == output.dim() - 1;
  if (!may_be_last) {
    classes_are_one(dim);
    return output;
  }
  const at::IntArrayRef sizes = output.sizes(), wanted = targets.sizes();
  const bool last = wanted == sizes.slice(0, sizes.size() - 1);
  const bool second = wanted[0] == sizes[0] && wanted.slice(1) == sizes.slice(2);
  TORCH_CHECK_VALUE(
      !last || !second, "nsn::joint_loss: output '", name, "' of shape ", to_string(sizes.vec()),
      " and targets of shape ", to_string(wanted.vec()),
      " do not tell whether its classes are dimension 1 or the last one. Flatten both "
      "to (N, C) and (N), or name loss=.");
  classes_are_one(last ? -1 : dim);
  return last ? output.movedim(-1, 1) : output;
}

}  // namespace

at::Tensor joint_loss(const Outputs& outputs, const at::Tensor& targets, const Loss& loss,
                      const std::map<std::string, double>& weights) {
  TORCH_CHECK_VALUE(!outputs.is_empty(),
                    "nsn::joint_loss: there are no outputs. Pass those of "
                    "a joint pass.");
  for (const auto& [name, weight] : weights) {
    static_cast<void>(weight);
    std::string known;
    for (const auto& output : outputs) known += (known.empty() ? "'" : ", '") + output.key() + "'";
    TORCH_CHECK_VALUE(outputs.contains(name), "nsn::joint_loss: a weight names '", name,
                      "', which is not among the outputs. They are ", known, ".");
  }
  std::vector<at::Tensor> values;
  std::vector<double> factors;
  for (const auto& output : outputs) {
    const auto found = weights.find(output.key());
    values.push_back(loss ? output.value()
                          : with_classes_second(output.key(), output.value(), targets));
    factors.push_back(found == weights.end() ? 1.0 : found->second);
  }
  if (!loss) {
    const bool stackable =
        targets.dim() > 0 && values[0].dim() > 1 && targets.size(0) > 0 &&
        std::all_of(values.begin(), values.end(), [&](const at::Tensor& value) {
          return value.sizes() == values[0].sizes() && value.size(0) == targets.size(0);
        });
    if (stackable && detail::takes_joint_cross_entropy(values, targets)) {
      return detail::joint_cross_entropy(values, targets, factors);
    }
    if (stackable) return stacked_cross_entropy(values, targets, factors);
  }
  at::Tensor total;
  for (const size_t i : c10::irange(values.size())) {
    const at::Tensor value =
        loss ? loss(values[i], targets) : at::cross_entropy_loss(values[i], targets);
    TORCH_CHECK_VALUE(value.defined() && value.numel() == 1 && value.dim() == 0,
                      "nsn::joint_loss: the loss must return a scalar, but returned a tensor of "
                      "shape ",
                      value.defined() ? value.sizes() : at::IntArrayRef(),
                      ". Reduce it, for example with mean().");
    const at::Tensor term = factors[i] == 1.0 ? value : value * factors[i];
    total = total.defined() ? total + term : term;
  }
  return total;
}

}  // namespace nsn
