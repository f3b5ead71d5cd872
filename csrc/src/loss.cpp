#include "nsn/loss.h"

#include <ATen/core/Reduction.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <vector>

#include "cross_entropy.h"

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
  // One number a lane, then the mean as torch takes it: over what is not left out.
  const at::Tensor sums = losses.reshape({lanes, losses.numel() / lanes}).sum(1);
  const at::Tensor coefficients = at::tensor(weights).to(sums.options());
  const at::Tensor total = sums.dot(coefficients);
  if (indices) return total / targets.ne(kIgnored).sum();
  return total / (losses.numel() / lanes);
}

}  // namespace

at::Tensor joint_loss(const Outputs& outputs, const at::Tensor& targets, const Loss& loss,
                      const std::map<std::string, double>& weights) {
  TORCH_CHECK_VALUE(!outputs.is_empty(),
                    "nsn::joint_loss: there are no outputs. Pass what "
                    "Network::joint returned.");
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
    values.push_back(output.value());
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
