#include "operations/cross_entropy.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/one_hot.h>
#include <ATen/ops/softmax.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels/softmax.h"
#include "operations/autograd.h"
#include "operations/kernels_for.h"
#include "operations/lanes.h"

namespace nsn::detail {

bool Teaching::teaches() const {
  return std::any_of(shares.begin(), shares.end(), [](double share) { return share > 0.0; });
}

at::Tensor teacher_of(const std::vector<at::Tensor>& said, const Teaching& teaching, size_t lane) {
  at::Tensor result;
  const auto& mixture = teaching.mixtures[lane];
  for (const size_t k : c10::irange(mixture.size())) {
    if (mixture[k] == 0.0) continue;
    const at::Tensor part = mixture[k] == 1.0 ? said[k] : said[k] * mixture[k];
    result = result.defined() ? result + part : part;
  }
  return result;
}

namespace {

constexpr int64_t kIgnored = -100;      // torch's default ignore_index
constexpr int64_t kMostOfDouble = 256;  // classes
constexpr int64_t kElementsOfTask = 4096;

using kernels::LogSum;

LogSum row_softmax(const float* logits, float* probabilities, int64_t classes, double factor) {
  return kernels::row_softmax(logits, probabilities, classes, static_cast<float>(factor));
}

LogSum row_softmax(const double* logits, double* probabilities, int64_t classes, double factor) {
  const double largest = *std::max_element(logits, logits + classes);
  double sum = 0.0;
  for (int64_t c = 0; c < classes; ++c) {
    probabilities[c] = std::exp(factor * (logits[c] - largest));
    sum += probabilities[c];
  }
  for (int64_t c = 0; c < classes; ++c) probabilities[c] /= sum;
  return {largest, std::log(sum)};
}

/// The logits of all lanes, and the gradients that are made of them.
template <typename T>
struct Table {
  std::vector<const T*> logits;
  const T* outside;
  T* gradients;
  int64_t batch, classes;
};

/// One sample after the other, in memory that is made once.
template <typename T>
class Rows {
 public:
  Rows(const Table<T>& table, const JointCrossEntropyOptions& options, int64_t counted)
      : table_(table),
        options_(options),
        counted_(static_cast<double>(counted)),
        lanes_(table.logits.size()),
        teaches_(options.teaching.teaches()),
        sums_(lanes_),
        soft_sums_(lanes_),
        soft_(teaches_ ? (lanes_ + 1) * static_cast<size_t>(table.classes) : 0) {}

  /// Makes the gradients of all lanes for one sample, and their losses, weighted.
  void run(int64_t sample, int64_t target, double* losses) {
    const auto& [logits, outside, gradients, batch, classes] = table_;
    const double factor = 1.0 / options_.teaching.temperature;
    for (const size_t lane : c10::irange(lanes_)) {
      sums_[lane] = row_softmax(row(lane, sample), own(lane, sample), classes, 1.0);
      if (!teaches_) continue;
      if (factor == 1.0) {
        std::copy_n(own(lane, sample), classes, soft(lane));
        soft_sums_[lane] = sums_[lane];
      } else {
        soft_sums_[lane] = row_softmax(row(lane, sample), soft(lane), classes, factor);
      }
    }
    if (teaches_ && outside != nullptr) {
      row_softmax(outside + sample * classes, soft(lanes_), classes, factor);
    }
    for (const size_t lane : c10::irange(lanes_)) {
      const double scale = options_.weights[lane] / counted_;
      const double share = teaches_ ? options_.teaching.shares[lane] : 0.0;
      double loss = (1.0 - share) * from_target(lane, sample, target, scale * (1.0 - share));
      if (share > 0.0) {
        loss += share / (factor * factor) * from_teacher(lane, sample, scale * share / factor);
      }
      losses[static_cast<int64_t>(lane) * batch + sample] = loss;
    }
  }

 private:
  const T* row(size_t lane, int64_t sample) const {
    return table_.logits[lane] + sample * table_.classes;
  }
  T* own(size_t lane, int64_t sample) const {
    return table_.gradients + (static_cast<int64_t>(lane) * table_.batch + sample) * table_.classes;
  }
  /// softmax(logits / T); behind the lanes the outside teacher's.
  T* soft(size_t lane) { return soft_.data() + lane * static_cast<size_t>(table_.classes); }

  /// The cross entropy from the target; probabilities become its gradient, `scale` times.
  double from_target(size_t lane, int64_t sample, int64_t target, double scale) {
    const T* z = row(lane, sample);
    T* to = own(lane, sample);
    const int64_t classes = table_.classes;
    const auto times = static_cast<T>(scale);
    const auto& [largest, rest] = sums_[lane];
    const double smoothing = options_.label_smoothing[lane];
    if (smoothing == 0.0) {
      for (int64_t c = 0; c < classes; ++c) to[c] *= times;
      to[target] -= times;
      return rest + (largest - static_cast<double>(z[target]));
    }
    const double each = smoothing / static_cast<double>(classes);
    double below = (1.0 - smoothing) * (largest - static_cast<double>(z[target]));
    for (int64_t c = 0; c < classes; ++c) {
      below += each * (largest - static_cast<double>(z[c]));
      to[c] = times * (to[c] - static_cast<T>(each));
    }
    to[target] -= static_cast<T>(scale * (1.0 - smoothing));
    return rest + below;
  }

  /// The cross entropy of logits / T from the teacher's probabilities; its gradient is added.
  double from_teacher(size_t lane, int64_t sample, double scale) {
    const T* z = row(lane, sample);
    const T* p = soft(lane);
    T* to = own(lane, sample);
    const int64_t classes = table_.classes;
    const auto times = static_cast<T>(scale);
    const auto& mixture = options_.teaching.mixtures[lane];
    const auto& [largest, rest] = soft_sums_[lane];
    double below = 0.0;
    for (int64_t c = 0; c < classes; ++c) to[c] += times * p[c];
    for (const size_t k : c10::irange(mixture.size())) {
      if (mixture[k] == 0.0) continue;
      const T* q = soft(k);
      const auto part = static_cast<T>(scale * mixture[k]);
      double dot = 0.0;
      for (int64_t c = 0; c < classes; ++c) {
        to[c] -= part * q[c];
        // A class that the teacher rules out may have any logit, minus infinity too.
        if (q[c] != T(0)) dot += static_cast<double>(q[c]) * (largest - static_cast<double>(z[c]));
      }
      below += mixture[k] * dot;
    }
    return rest + below / options_.teaching.temperature;
  }

  const Table<T>& table_;
  const JointCrossEntropyOptions& options_;
  double counted_;
  size_t lanes_;
  bool teaches_;
  std::vector<LogSum> sums_, soft_sums_;
  std::vector<T> soft_;
};

struct JointCrossEntropy : torch::autograd::Function<JointCrossEntropy> {
  using Options = std::shared_ptr<const JointCrossEntropyOptions>;

  static at::Tensor forward(AutogradContext* ctx, at::TensorList logits, const at::Tensor& targets,
                            const Options& options) {
    at::Tensor gradients;
    const at::Tensor loss = compute(logits, targets, *options, gradients);
    // Its tensor is saved as others are.
    JointCrossEntropyOptions numbers = *options;
    variable_list saved{targets, gradients, std::move(numbers.teaching.outside)};
    numbers.teaching.outside = at::Tensor();
    keep(ctx, std::move(numbers));
    saved.insert(saved.end(), logits.begin(), logits.end());
    ctx->save_for_backward(std::move(saved));
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& outer) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &targets = saved[0], &gradients = saved[1];
    const variable_list logits(saved.begin() + 3, saved.end());
    variable_list results;
    if (at::GradMode::is_enabled()) {
      auto options = kept<JointCrossEntropyOptions>(ctx);
      options.teaching.outside = saved[2];
      results = differentiable(logits, targets, options, outer[0]);
    } else {
      results = split_as(gradients * outer[0], logits);
    }
    results.resize(logits.size() + 2);  // none for the targets and the options
    return results;
  }

  /// The gradients by operations that autograd can differentiate again.
  static variable_list differentiable(const variable_list& logits, const at::Tensor& targets,
                                      const JointCrossEntropyOptions& options,
                                      const at::Tensor& outer) {
    const int64_t classes = logits[0].size(1);
    const double t = options.teaching.temperature;
    const bool teaches = options.teaching.teaches();
    const at::Tensor counted = targets.ne(kIgnored).unsqueeze(1);
    const at::Tensor scale = outer * counted / counted.sum().clamp_min(1);
    const at::Tensor right =
        at::one_hot(targets.masked_fill(targets.eq(kIgnored), 0), classes).to(logits[0]);
    std::vector<at::Tensor> said;
    if (teaches) {
      for (const at::Tensor& lane : logits) said.push_back(at::softmax(lane.detach() / t, 1));
      const at::Tensor& outside = options.teaching.outside;
      said.push_back(outside.defined() ? at::softmax(outside / t, 1) : outside);
    }
    variable_list results;
    for (const size_t lane : c10::irange(logits.size())) {
      const double share = teaches ? options.teaching.shares[lane] : 0.0;
      const double smoothing = options.label_smoothing[lane];
      const at::Tensor hard = right * (1.0 - smoothing) + smoothing / static_cast<double>(classes);
      at::Tensor gradient = (at::softmax(logits[lane], 1) - hard) * (1.0 - share);
      if (share > 0.0) {
        gradient = gradient +
                   (at::softmax(logits[lane] / t, 1) - teacher_of(said, options.teaching, lane)) *
                       (share * t);
      }
      results.push_back(gradient * (scale * options.weights[lane]));
    }
    return results;
  }

  static at::Tensor compute(at::TensorList logits, const at::Tensor& targets,
                            const JointCrossEntropyOptions& options, at::Tensor& gradients) {
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
      std::vector<at::Tensor> held;
      Table<scalar_t> table{{}, nullptr, gradients.mutable_data_ptr<scalar_t>(), batch, classes};
      for (const at::Tensor& lane : logits) {
        table.logits.push_back(held.emplace_back(lane.contiguous()).const_data_ptr<scalar_t>());
      }
      if (options.teaching.outside.defined()) {
        table.outside =
            held.emplace_back(options.teaching.outside.contiguous()).const_data_ptr<scalar_t>();
      }
      const int64_t per_task = std::max<int64_t>(1, kElementsOfTask / (classes * lanes));
      at::parallel_for(0, batch, per_task, [&](int64_t begin, int64_t end) {
        Rows<scalar_t> rows(table, options, counted);
        for (int64_t sample = begin; sample < end; ++sample) {
          if (target[sample] != kIgnored) {
            rows.run(sample, target[sample], losses.data());
            continue;
          }
          for (const int64_t lane : c10::irange(lanes)) {
            std::fill_n(table.gradients + (lane * batch + sample) * classes, classes, scalar_t(0));
          }
        }
      });
    });
    // In order, so that the sum does not depend on the threads.
    double total = 0.0;
    for (const size_t row : c10::irange(losses.size())) {
      total += losses[row] * options.weights[row / static_cast<size_t>(batch)];
    }
    return at::full({}, total / static_cast<double>(counted), logits[0].options());
  }
};

}  // namespace

at::Tensor joint_cross_entropy(const std::vector<at::Tensor>& logits, const at::Tensor& targets,
                               const JointCrossEntropyOptions& options) {
  if (is_recorded(logits)) {
    return JointCrossEntropy::apply(at::TensorList(logits), targets,
                                    std::make_shared<const JointCrossEntropyOptions>(options));
  }
  at::Tensor unused;
  return JointCrossEntropy::compute(logits, targets, options, unused);
}

bool takes_joint_cross_entropy(const std::vector<at::Tensor>& logits, const at::Tensor& targets) {
  const bool fits =
      targets.scalar_type() == at::kLong && has_kernels_there(targets) && !under_transform(logits);
  return fits && std::all_of(logits.begin(), logits.end(), [&](const at::Tensor& lane) {
           const auto dtype = lane.scalar_type();
           const bool is_quicker =
               dtype == at::kFloat || (dtype == at::kDouble && lane.size(1) <= kMostOfDouble);
           return has_kernels_there(lane) && lane.size(1) >= 1 && is_quicker &&
                  dtype == logits[0].scalar_type();
         });
}

}  // namespace nsn::detail
