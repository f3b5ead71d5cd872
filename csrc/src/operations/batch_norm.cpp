#include "operations/batch_norm.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/native_batch_norm_backward.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/norm.h"
#include "operations/autograd.h"
#include "operations/kernels_for.h"

namespace nsn::detail {

namespace {

/// Elements of one task; the same whatever the threads, so that sums are.
constexpr int64_t kElementsPerTask = 16384;

/// x in the order in which its features lie beside each other.
bool lies_in_features(const at::Tensor& x) {
  if (x.dim() == 4) return x.is_contiguous(at::MemoryFormat::ChannelsLast);
  return x.dim() == 2 && x.is_contiguous();
}

/// The rows that kernels see x in.
struct Rows {
  explicit Rows(const at::Tensor& x)
      : numel(x.numel()),
        features(x.size(1)),
        columns(kernels::norm_columns(features)),
        count((numel + columns - 1) / columns),
        per_task(std::max<int64_t>(1, kElementsPerTask / columns)) {}

  /// A per-feature vector in the length of a row.
  std::vector<float> repeated(const std::vector<double>& of_features) const {
    std::vector<float> result(static_cast<size_t>(columns));
    for (size_t i = 0; i < result.size(); ++i) {
      result[i] = static_cast<float>(of_features[i % of_features.size()]);
    }
    return result;
  }

  /// Both sums of NormSums, for each feature, over all of x.
  std::pair<std::vector<double>, std::vector<double>> sums(const float* x, const float* dy,
                                                           const std::vector<float>& shift) const {
    const int64_t tasks = (count + per_task - 1) / per_task;
    const auto length = static_cast<size_t>(2 * columns);
    std::vector<double> parts(static_cast<size_t>(tasks) * length, 0.0);
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        kernels::run(kernels::NormSums{x, dy, shift.data(), numel, columns,
                                       parts.data() + static_cast<size_t>(task) * length},
                     task * per_task, std::min(count, (task + 1) * per_task));
      }
    });
    const auto size = static_cast<size_t>(features), row = static_cast<size_t>(columns);
    std::vector<double> first(size, 0.0), second(size, 0.0);
    for (size_t at = 0; at < parts.size(); at += length) {
      for (size_t i = 0; i < row; ++i) {
        first[i % size] += parts[at + i];
        second[i % size] += parts[at + row + i];
      }
    }
    return {std::move(first), std::move(second)};
  }

  void apply(const kernels::NormApply& pass) const {
    at::parallel_for(0, count, per_task,
                     [&](int64_t begin, int64_t end) { kernels::run(pass, begin, end); });
  }

  double positions() const { return static_cast<double>(numel / features); }

  int64_t numel, features, columns, count, per_task;
};

std::vector<double> values_of(const at::Tensor& vector) {
  const at::Tensor own = vector.contiguous();
  const float* from = own.const_data_ptr<float>();
  return std::vector<double>(from, from + own.numel());
}

at::Tensor tensor_of(const std::vector<double>& values) {
  at::Tensor result = at::empty({static_cast<int64_t>(values.size())}, at::kFloat);
  std::copy(values.begin(), values.end(), result.mutable_data_ptr<float>());
  return result;
}

struct Statistics {
  std::vector<double> mean, variance, inverse;  // the variance biased; 1 / sqrt(variance + eps)
  double eps;
};

Statistics statistics_of(const Rows& rows, const at::Tensor& x, double eps) {
  const float* from = x.const_data_ptr<float>();
  const auto features = static_cast<size_t>(rows.features);
  // Around the first position's values, so that squares do not cancel out.
  const std::vector<double> around(from, from + features);
  auto [mean, variance] = rows.sums(from, nullptr, rows.repeated(around));
  std::vector<double> inverse(features);
  for (size_t i = 0; i < features; ++i) {
    mean[i] /= rows.positions();
    const double own = variance[i] / rows.positions() - mean[i] * mean[i];
    variance[i] = own < 0.0 ? 0.0 : own;  // NaN passes
    mean[i] += around[i];
    inverse[i] = 1.0 / std::sqrt(variance[i] + eps);
  }
  return {std::move(mean), std::move(variance), std::move(inverse), eps};
}

struct BatchNormFunction : torch::autograd::Function<BatchNormFunction> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x,
                               const std::optional<at::Tensor>& given_weight,
                               const std::optional<at::Tensor>& given_bias, double eps) {
    const at::Tensor weight = given_weight.value_or(at::Tensor());
    Statistics own = statistics_of(Rows(x), x, eps);
    BatchNormed result = compute(x, weight, given_bias.value_or(at::Tensor()), own);
    ctx->save_for_backward({x, weight});
    keep(ctx, std::move(own));
    ctx->mark_non_differentiable({result.mean, result.variance});
    return {result.y, result.mean, result.variance};
  }

  static BatchNormed compute(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                             const Statistics& own) {
    const Rows rows(x);
    std::vector<double> factor = own.inverse, shift(factor.size(), 0.0);
    if (weight.defined()) {
      const auto weights = values_of(weight);
      for (size_t i = 0; i < factor.size(); ++i) factor[i] *= weights[i];
      shift = values_of(bias);
    }
    const auto mean = rows.repeated(own.mean), factors = rows.repeated(factor);
    const auto shifts = rows.repeated(shift);
    at::Tensor y = at::empty_like(x);
    rows.apply({x.const_data_ptr<float>(), nullptr, mean.data(), factors.data(), nullptr,
                shifts.data(), rows.numel, rows.columns, y.mutable_data_ptr<float>()});
    std::vector<double> unbiased = own.variance;
    for (double& each : unbiased) each *= rows.positions() / (rows.positions() - 1.0);
    return {y, tensor_of(own.mean), tensor_of(unbiased)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &dy = gradients[0];
    if (!dy.defined()) return {{}, {}, {}, {}};
    const Rows rows(x);
    const auto& own = kept<Statistics>(ctx);
    const std::array<bool, 3> wanted{ctx->needs_input_grad(0), weight.defined(), weight.defined()};
    if (at::GradMode::is_enabled()) {
      // By the operation that autograd can differentiate again.
      auto [dx, dw, db] = at::native_batch_norm_backward(
          dy, x, weight.defined() ? std::optional<at::Tensor>(weight) : std::nullopt, {}, {},
          tensor_of(own.mean), tensor_of(own.inverse), /*train=*/true, own.eps, wanted);
      return {dx, dw, db, {}};
    }
    const at::Tensor laid =
        dy.contiguous(x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
    const float *from = x.const_data_ptr<float>(), *dy_from = laid.const_data_ptr<float>();
    const auto mean = rows.repeated(own.mean);
    const auto [db, products] = rows.sums(from, dy_from, mean);
    std::vector<double> dw = products;
    for (size_t i = 0; i < dw.size(); ++i) dw[i] *= own.inverse[i];
    at::Tensor dx;
    if (wanted[0]) {
      // dx = weight * inverse * (dy - mean(dy) - normed * mean(dy normed))
      const auto weights =
          weight.defined() ? values_of(weight) : std::vector<double>(own.inverse.size(), 1.0);
      std::vector<double> dy_factor(weights.size()), factor(weights.size()), shift(weights.size());
      for (size_t i = 0; i < weights.size(); ++i) {
        dy_factor[i] = weights[i] * own.inverse[i];
        factor[i] = -dy_factor[i] * own.inverse[i] * dw[i] / rows.positions();
        shift[i] = -dy_factor[i] * db[i] / rows.positions();
      }
      const auto dy_factors = rows.repeated(dy_factor), factors = rows.repeated(factor);
      const auto shifts = rows.repeated(shift);
      dx = at::empty_like(x);
      rows.apply({from, dy_from, mean.data(), factors.data(), dy_factors.data(), shifts.data(),
                  rows.numel, rows.columns, dx.mutable_data_ptr<float>()});
    }
    if (!weight.defined()) return {dx, {}, {}, {}};
    return {dx, tensor_of(dw), tensor_of(db), {}};
  }
};

}  // namespace

BatchNormed batch_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                       double eps) {
  if (!is_recorded({x, weight, bias})) {
    return BatchNormFunction::compute(x, weight, bias, statistics_of(Rows(x), x, eps));
  }
  const auto or_none = [](const at::Tensor& each) {
    return each.defined() ? std::optional<at::Tensor>(each) : std::nullopt;
  };
  const variable_list all = BatchNormFunction::apply(x, or_none(weight), or_none(bias), eps);
  return {all[0], all[1], all[2]};
}

bool takes_batch_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const auto fits = [](const at::Tensor& each) { return !each.defined() || has_kernels(each); };
  return fits(x) && fits(weight) && fits(bias) && weight.defined() == bias.defined() &&
         x.numel() > x.size(1) && lies_in_features(x) && !under_transform({x, weight, bias});
}

}  // namespace nsn::detail
