#include "operations/cross_entropy.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/softmax.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>

#include "kernels/cross_entropy.h"
#include "operations/autograd.h"
#include "operations/kernels_for.h"
#include "operations/lanes.h"

namespace nsn::detail {

namespace {

constexpr int64_t kIgnored = -100;  // torch's default ignore_index
constexpr int64_t kMostClasses = 256;
constexpr int64_t kElementsPerTask = 4096;

/// The loss of one row, and its gradient scaled by `scale`.
double row_loss(const float* logits, float* gradient, int64_t classes, int64_t target,
                double scale) {
  return kernels::row_cross_entropy(logits, gradient, classes, target, scale);
}

double row_loss(const double* logits, double* gradient, int64_t classes, int64_t target,
                double scale) {
  const double largest = *std::max_element(logits, logits + classes);
  double sum = 0.0;
  for (int64_t c = 0; c < classes; ++c) {
    gradient[c] = std::exp(logits[c] - largest);
    sum += gradient[c];
  }
  for (int64_t c = 0; c < classes; ++c) gradient[c] *= scale / sum;
  gradient[target] -= scale;
  return std::log(sum) + (largest - logits[target]);
}

struct JointCrossEntropy : torch::autograd::Function<JointCrossEntropy> {
  static at::Tensor forward(AutogradContext* ctx, at::TensorList logits, const at::Tensor& targets,
                            const std::vector<double>& weights) {
    at::Tensor gradients;
    const at::Tensor loss = compute(logits, targets, weights, gradients);
    keep(ctx, weights);
    variable_list saved{targets, gradients};
    saved.insert(saved.end(), logits.begin(), logits.end());
    ctx->save_for_backward(std::move(saved));
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& outer) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &targets = saved[0], &gradients = saved[1];
    const variable_list logits(saved.begin() + 2, saved.end());
    const auto& weights = kept<std::vector<double>>(ctx);
    variable_list results(logits.size() + 2);  // none for the targets and the weights
    if (at::GradMode::is_enabled()) {
      // By operations that autograd can differentiate again.
      const at::Tensor counted = targets.ne(kIgnored).unsqueeze(1);
      const at::Tensor scale = outer[0] * counted / counted.sum().clamp_min(1);
      const at::Tensor ones =
          at::one_hot(targets.masked_fill(targets.eq(kIgnored), 0), logits[0].size(1));
      for (const size_t lane : c10::irange(logits.size())) {
        results[lane] = (at::softmax(logits[lane], 1) - ones) * (scale * weights[lane]);
      }
      return results;
    }
    const at::Tensor scaled = gradients * outer[0];
    results = split_as(scaled, logits);
    results.resize(logits.size() + 2);
    return results;
  }

  static at::Tensor compute(at::TensorList logits, const at::Tensor& targets,
                            const std::vector<double>& weights, at::Tensor& gradients) {
    const int64_t batch = logits[0].size(0), classes = logits[0].size(1);
    const auto lanes = static_cast<int64_t>(logits.size());
    const at::Tensor contiguous_targets = targets.contiguous();
    const int64_t* target = contiguous_targets.const_data_ptr<int64_t>();
    int64_t counted = 0;
    for (const int64_t i : c10::irange(batch)) {
      if (target[i] == kIgnored) continue;
      TORCH_CHECK_INDEX(target[i] >= 0 && target[i] < classes, "nsn::joint_loss: target ",
                        target[i], " is out of bounds: the outputs have classes 0 to ", classes - 1,
                        ". Leave samples out by -100.");
      ++counted;
    }
    gradients = at::empty({lanes, batch, classes}, logits[0].options());
    std::vector<double> losses(static_cast<size_t>(lanes * batch), 0.0);
    AT_DISPATCH_FLOATING_TYPES(logits[0].scalar_type(), "nsn::joint_loss", [&] {
      std::vector<at::Tensor> rows;
      for (const at::Tensor& lane : logits) rows.push_back(lane.contiguous());
      scalar_t* gradient = gradients.mutable_data_ptr<scalar_t>();
      const int64_t rows_per_task = std::max<int64_t>(1, kElementsPerTask / classes);
      at::parallel_for(0, lanes * batch, rows_per_task, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t lane = row / batch, sample = row % batch;
          scalar_t* own = gradient + row * classes;
          if (target[sample] == kIgnored) {
            std::fill_n(own, classes, scalar_t(0));
            continue;
          }
          const double scale = weights[static_cast<size_t>(lane)] / static_cast<double>(counted);
          losses[static_cast<size_t>(row)] = row_loss(
              rows[static_cast<size_t>(lane)].const_data_ptr<scalar_t>() + sample * classes, own,
              classes, target[sample], scale);
        }
      });
    });
    // In order, so that the sum does not depend on the threads.
    double total = 0.0;
    for (const size_t row : c10::irange(losses.size())) {
      total += losses[row] * weights[row / static_cast<size_t>(batch)];
    }
    return at::full({}, total / static_cast<double>(counted), logits[0].options());
  }
};

}  // namespace

at::Tensor joint_cross_entropy(const std::vector<at::Tensor>& logits, const at::Tensor& targets,
                               const std::vector<double>& weights) {
  if (is_recorded(logits)) {
    return JointCrossEntropy::apply(at::TensorList(logits), targets, weights);
  }
  at::Tensor unused;
  return JointCrossEntropy::compute(logits, targets, weights, unused);
}

bool takes_joint_cross_entropy(const std::vector<at::Tensor>& logits, const at::Tensor& targets) {
  const bool fits = targets.dim() == 1 && targets.scalar_type() == at::kLong &&
                    has_kernels_there(targets) && !under_transform(logits);
  return fits && std::all_of(logits.begin(), logits.end(), [&](const at::Tensor& lane) {
           const auto dtype = lane.scalar_type();
           return lane.dim() == 2 && has_kernels_there(lane) && lane.size(1) >= 1 &&
                  lane.size(1) <= kMostClasses && (dtype == at::kFloat || dtype == at::kDouble) &&
                  dtype == logits[0].scalar_type();
         });
}

}  // namespace nsn::detail
