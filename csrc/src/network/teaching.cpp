#include "network/teaching.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "description/subnetworks.h"
#include "nsn/values/layout.h"

namespace nsn::detail {

namespace {

/// Which of `lanes` is the smallest above one.
std::optional<size_t> next_larger(const std::vector<merge::Lane>& lanes, const merge::Lane& own) {
  std::optional<size_t> found;
  for (const size_t i : c10::irange(lanes.size())) {
    if (own.is_smaller_than(lanes[i]) && (!found || lanes[i].is_smaller_than(lanes[*found]))) {
      found = i;
    }
  }
  return found;
}

/// The mean of those that are counted; of none it is NaN, which gives no gradient, as without a
/// teacher.
at::Tensor mean_of(const at::Tensor& each, const at::Tensor& counted) {
  if (!counted.defined()) return each.mean();
  const at::Tensor count = counted.sum();
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  return at::where(count.gt(0), (each * counted).sum() / count.clamp_min(1), kNone);
}

/// As distances are computed in: narrow dtypes would overflow, and lose what a small one says. What
/// is left out is zero, whatever was there; `classes` is the dimension that `counted` lacks.
at::Tensor computed(const at::Tensor& said, const at::Tensor& counted, int64_t classes) {
  const at::Tensor wide = said.scalar_type() == at::kDouble ? said : said.to(at::kFloat);
  return counted.defined() ? at::where(counted.unsqueeze(classes), wide, 0.0) : wide;
}

}  // namespace

Teaching teaching_of(const teach::Teacher& teacher, const std::vector<std::string>& names) {
  const size_t lanes = names.size();
  std::vector<merge::Lane> sizes;
  for (const std::string& name : names) sizes.push_back(teacher.lane_of(name));
  const auto base =
      static_cast<size_t>(std::find(names.begin(), names.end(), kBase) - names.begin());
  TORCH_CHECK_VALUE(teacher.kind() != teach::Kind::kBase || base < lanes,
                    "nsn::joint_loss: base is the teacher, but this pass has no output of it; it "
                    "has ",
                    quoted(names), ". Run base too, or teach by another.");
  Teaching result{std::vector<double>(lanes, 0.0), {}, teacher.temperature(), teacher.output()};
  for (const size_t lane : c10::irange(lanes)) {
    auto& mixture = result.mixtures.emplace_back(lanes + 1, 0.0);
    switch (teacher.kind()) {
      case teach::Kind::kBase:
        if (lane == base) continue;
        mixture[base] = 1.0;
        break;
      case teach::Kind::kNextLarger:
        if (const auto larger = next_larger(sizes, sizes[lane])) {
          mixture[*larger] = 1.0;
        } else {
          continue;
        }
        break;
      case teach::Kind::kMutual:
        if (lanes == 1) continue;
        for (const size_t other : c10::irange(lanes)) {
          if (other != lane) mixture[other] = 1.0 / static_cast<double>(lanes - 1);
        }
        break;
      case teach::Kind::kOutside:
        mixture[lanes] = 1.0;
        break;
    }
    result.shares[lane] = teacher.weight_of(names[lane]);
  }
  return result;
}

at::Tensor distance_from_teacher(const teach::Teacher& teacher, const Teaching& teaching,
                                 const std::vector<std::string>& names,
                                 const std::vector<at::Tensor>& said, size_t lane,
                                 const at::Tensor& counted) {
  for (const size_t k : c10::irange(said.size())) {
    if (teaching.mixtures[lane][k] == 0.0) continue;
    const std::string from = k < names.size() ? "'" + names[k] + "'" : "the outside teacher";
    TORCH_CHECK_VALUE(said[k].sizes() == said[lane].sizes(), "nsn::joint_loss: '", names[lane],
                      "' gives ", to_string(said[lane].sizes().vec()), ", but is to learn from ",
                      from, ", which gives ", to_string(said[k].sizes().vec()),
                      ". Let it learn from one whose output has the same shape.");
  }
  const double share = teaching.shares[lane], t = teaching.temperature;
  const bool by_numbers = teacher.distance() == teach::Distance::kSquaredError;
  TORCH_CHECK_VALUE(by_numbers || said[lane].dim() > 0, "nsn::joint_loss: '", names[lane],
                    "' gives one number, which has no classes to learn. Learn by squared error.");
  const int64_t classes = said[lane].dim() <= 1 ? 0 : 1;
  const at::Tensor output = computed(said[lane], counted, classes);
  std::vector<at::Tensor> told;
  for (const size_t k : c10::irange(said.size())) {
    if (teaching.mixtures[lane][k] == 0.0) {
      told.emplace_back();
      continue;
    }
    const at::Tensor each = computed(said[k].detach(), counted, classes);
    told.push_back(by_numbers ? each : at::softmax(each / t, classes));
  }
  const at::Tensor teaches = teacher_of(told, teaching, lane).to(output.scalar_type());
  if (by_numbers) {
    if (!counted.defined()) return share * at::mse_loss(output, teaches);
    return share * mean_of((output - teaches).square().mean(classes), counted);
  }
  const at::Tensor logs = at::log_softmax(output / t, classes);
  // A class that the teacher rules out may have any logit, minus infinity too.
  const at::Tensor each = -at::where(teaches.eq(0), 0.0, teaches * logs).sum(classes);
  return share * t * t * mean_of(each, counted);
}

}  // namespace nsn::detail
