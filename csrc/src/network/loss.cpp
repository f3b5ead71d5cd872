#include "nsn/network/loss.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Reduction.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "description/subnetworks.h"
#include "network/teaching.h"
#include "nsn/values/layout.h"
#include "operations/autocast.h"
#include "operations/cross_entropy.h"

namespace nsn {

namespace {

constexpr int64_t kIgnored = -100;  // torch's default ignore_index

/// Cross entropy of all outputs, stacked along the batch: sum_l w_l * mean over the batch; of one
/// smoothing.
at::Tensor stacked_cross_entropy(const std::vector<at::Tensor>& outputs, const at::Tensor& targets,
                                 const detail::JointCrossEntropyOptions& options) {
  const auto lanes = static_cast<int64_t>(outputs.size());
  std::vector<int64_t> repeats(static_cast<size_t>(targets.dim()), 1);
  repeats[0] = lanes;
  const at::Tensor losses =
      at::cross_entropy_loss(at::cat(outputs), targets.repeat(repeats), /*weight=*/{},
                             at::Reduction::None, kIgnored, options.label_smoothing[0]);
  const bool indices = !at::isFloatingType(targets.scalar_type());
  // One number a lane, then the mean as torch takes it: over what is not left out. Narrow dtypes
  // would overflow before the division.
  const auto dtype = losses.scalar_type();
  const auto computed = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor sums = losses.reshape({lanes, losses.numel() / lanes}).sum(1, false, computed);
  // Numbers times tensors, and no tensor of numbers, which a transform of torch.func would wrap.
  at::Tensor total;
  for (const int64_t i : c10::irange(lanes)) {
    const at::Tensor part = sums.select(0, i) * options.weights[static_cast<size_t>(i)];
    total = total.defined() ? total + part : part;
  }
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

/// Refuses a name that is not among the outputs.
void check_known(const Outputs& outputs, const std::string& name, const char* what) {
  TORCH_CHECK_VALUE(outputs.contains(name), "nsn::joint_loss: ", what, " names '", name,
                    "', which is not among the outputs. They are ", detail::quoted(outputs.keys()),
                    ".");
}

void check_smoothing(double share) {
  TORCH_CHECK_VALUE(share >= 0.0 && share <= 1.0,
                    "nsn::joint_loss: label_smoothing must be between 0 and 1, but is ", share,
                    ".");
}

/// One pass's outputs with all that the options say of them, lane by lane.
struct Lane {
  std::string name;
  /// As the loss takes it.
  at::Tensor output;
  at::Tensor target;
  /// Not set: cross entropy.
  Loss loss;
  double weight, label_smoothing;
};

std::vector<Lane> lanes_of(const Outputs& outputs, const Targets& targets,
                           const JointLossOptions& options) {
  for (const auto& [name, weight] : options.weights()) check_known(outputs, name, "a weight");
  for (const auto& [name, loss] : options.losses()) check_known(outputs, name, "a loss");
  for (const auto& [name, target] : targets.each()) check_known(outputs, name, "a target");
  for (const auto& [name, share] : options.label_smoothings()) {
    check_known(outputs, name, "label_smoothing");
  }
  // One tensor may stand for many lanes, and does behind this too.
  std::map<const c10::TensorImpl*, at::Tensor> wide;
  const auto as_indices = [&](const at::Tensor& target) {
    // Among whose numbers there is none for those that are left out.
    if (target.scalar_type() != at::kByte) return target;
    at::Tensor& made = wide[target.unsafeGetTensorImpl()];
    if (!made.defined()) made = target.to(at::kLong);
    return made;
  };
  std::vector<Lane> result;
  for (const auto& output : outputs) {
    const std::string& name = output.key();
    const auto own = options.losses().find(name);
    const auto weight = options.weights().find(name);
    const auto smoothing = options.label_smoothings().find(name);
    const bool is_smoothed = smoothing != options.label_smoothings().end();
    Lane lane{name,
              output.value(),
              targets.of(name),
              own == options.losses().end() ? options.loss() : own->second,
              weight == options.weights().end() ? 1.0 : weight->second,
              is_smoothed ? smoothing->second : options.label_smoothing()};
    TORCH_CHECK_VALUE(!is_smoothed || !lane.loss, "nsn::joint_loss: label_smoothing names '", name,
                      "', but is of the default cross entropy, and '", name,
                      "' has a loss that was given. Smooth in that loss.");
    if (!lane.loss) {
      lane.target = as_indices(lane.target);
      lane.output = with_classes_second(name, lane.output, lane.target);
    }
    result.push_back(std::move(lane));
  }
  return result;
}

/// Whether what is taught are classes, by cross entropy.
bool teach_by_classes(const JointLossOptions& options) {
  return options.teach() && options.teach()->distance() != teach::Distance::kSquaredError;
}

/// The outside teacher's output in the form that a lane's has; undefined where there is none.
at::Tensor outside_for(const Lane& lane, const at::Tensor& outside) {
  if (!outside.defined() || lane.loss) return outside;
  return with_classes_second("the outside teacher", outside, lane.target);
}

/// What each lane learns from its teacher, or an empty one where nobody teaches.
detail::Teaching teaching_of(const std::vector<Lane>& lanes, const JointLossOptions& options) {
  if (!options.teach()) return {};
  const teach::Teacher& teacher = *options.teach();
  std::vector<std::string> names;
  for (const Lane& lane : lanes) names.push_back(lane.name);
  detail::Teaching result = detail::teaching_of(teacher, names);
  for (const size_t i : c10::irange(lanes.size())) {
    TORCH_CHECK_VALUE(
        result.shares[i] == 0.0 || !lanes[i].loss || teacher.distance(), "nsn::joint_loss: '",
        lanes[i].name,
        "' has a loss that was given and learns from a teacher too, but by what "
        "distance was not said. Say it where the teacher is made: by cross entropy or by "
        "squared error.");
  }
  TORCH_CHECK_VALUE(
      teacher.distance() != teach::Distance::kSquaredError || teacher.temperature() == 1.0,
      "nsn::joint_loss: the temperature of a teacher is of probabilities, but its distance is the "
      "squared error. Leave the temperature out.");
  const bool by_classes = teach_by_classes(options);
  for (const Lane& lane : lanes) {
    if (!result.teaches() || !by_classes || !lane.loss) continue;
    TORCH_CHECK_VALUE(lane.output.dim() <= 2, "nsn::joint_loss: '", lane.name, "' gives ",
                      to_string(lane.output.sizes().vec()),
                      " and has a loss that was given, so that it is not known which dimension has "
                      "the classes that are taught. Flatten all outputs to (N, C).");
    TORCH_CHECK_VALUE(lane.output.dim() == 0 || lane.output.size(-1) != 1, "nsn::joint_loss: '",
                      lane.name, "' gives ", to_string(lane.output.sizes().vec()),
                      ", which is one class, whose cross entropy from a teacher is always 0. Learn "
                      "by squared error.");
  }
  return result;
}

/// Positions that a target does not leave out; nothing where it has none of those.
at::Tensor counted(const Lane& lane) {
  const bool indices = !lane.loss && !at::isFloatingType(lane.target.scalar_type());
  return indices ? lane.target.ne(kIgnored) : at::Tensor();
}

/// Of narrow dtypes computed in float32: float16 cannot even count the rows of a large batch.
at::Tensor cross_entropy_of(const Lane& lane) {
  const auto dtype = lane.output.scalar_type();
  const bool is_narrow = dtype == at::kHalf || dtype == at::kBFloat16;
  const auto wide = [&](const at::Tensor& tensor) {
    return is_narrow && tensor.is_floating_point() ? tensor.to(at::kFloat) : tensor;
  };
  return at::cross_entropy_loss(wide(lane.output), wide(lane.target), /*weight=*/{},
                                at::Reduction::Mean, kIgnored, lane.label_smoothing);
}

/// The dtype that torch's own loss of this lane has; under autocast it is wide too.
at::ScalarType dtype_of(const Lane& lane, const at::Tensor& loss) {
  const bool is_cast_back = !lane.loss && !detail::autocast_dtype(lane.output);
  return is_cast_back ? lane.output.scalar_type() : loss.scalar_type();
}

/// The loss of one lane from its targets, a scalar.
at::Tensor loss_of(const Lane& lane) {
  const at::Tensor value = lane.loss ? lane.loss(lane.output, lane.target) : cross_entropy_of(lane);
  TORCH_CHECK_VALUE(value.defined(), "nsn::joint_loss: the loss of '", lane.name,
                    "' must return a scalar, but returned no tensor.");
  TORCH_CHECK_VALUE(value.dim() == 0,
                    "nsn::joint_loss: the loss must return a scalar, but returned a tensor of "
                    "shape ",
                    value.sizes(), ". Reduce it, for example with mean().");
  return value;
}

/// Outputs (N, C, *) or (N, *, C) as (N', C), whose cross entropy is the same.
at::Tensor in_rows(const at::Tensor& output) {
  return output.dim() <= 2 ? output : output.movedim(1, -1).flatten(0, -2);
}

/// The loss of all lanes where one pass over all of them gives it; else nothing.
at::Tensor in_one_pass(const std::vector<Lane>& lanes, const JointLossOptions& options,
                       const detail::Teaching& teaching) {
  const at::Tensor &first = lanes[0].output, &targets = lanes[0].target;
  const at::Tensor outside = outside_for(lanes[0], teaching.outside);
  const bool fits = targets.dim() > 0 && first.dim() > 1 && targets.size(0) > 0 &&
                    (!teaching.teaches() || teach_by_classes(options)) &&
                    (!outside.defined() || outside.sizes() == first.sizes()) &&
                    std::all_of(lanes.begin(), lanes.end(), [&](const Lane& lane) {
                      return !lane.loss && lane.target.is_same(targets) &&
                             lane.output.sizes() == first.sizes() &&
                             first.size(0) == targets.size(0);
                    });
  if (!fits) return {};
  std::vector<at::Tensor> outputs;
  detail::JointCrossEntropyOptions joint{{}, {}, teaching};
  for (const Lane& lane : lanes) {
    outputs.push_back(lane.output);
    joint.weights.push_back(lane.weight);
    joint.label_smoothing.push_back(lane.label_smoothing);
  }
  const bool one_each =
      targets.dim() == first.dim() - 1 && targets.sizes().slice(1) == first.sizes().slice(2);
  if (one_each && detail::takes_joint_cross_entropy(outputs, targets)) {
    for (at::Tensor& output : outputs) output = in_rows(output);
    if (outside.defined()) {
      const at::Tensor rows = in_rows(outside).to(first.options());
      // Which autograd would not keep for backward.
      joint.teaching.outside = rows.is_inference() ? rows.clone() : rows;
    }
    return detail::joint_cross_entropy(outputs, targets.flatten(), joint);
  }
  const bool is_one_loss =
      !teaching.teaches() && std::all_of(lanes.begin(), lanes.end(), [&](const Lane& lane) {
        return lane.label_smoothing == lanes[0].label_smoothing;
      });
  return is_one_loss ? stacked_cross_entropy(outputs, targets, joint) : at::Tensor();
}

}  // namespace

const at::Tensor& Targets::of(const std::string& subnetwork) const {
  if (all_.defined()) return all_;
  const auto found = each_.find(subnetwork);
  TORCH_CHECK_VALUE(found != each_.end(), "nsn::joint_loss: there are no targets for '", subnetwork,
                    "'. Give one tensor for all, or one for each output.");
  return found->second;
}

JointLossOptions& JointLossOptions::loss(Loss loss) {
  loss_ = std::move(loss);
  return *this;
}

JointLossOptions& JointLossOptions::loss(std::string subnetwork, Loss loss) {
  losses_.insert_or_assign(std::move(subnetwork), std::move(loss));
  return *this;
}

JointLossOptions& JointLossOptions::weight(std::string subnetwork, double weight) {
  TORCH_CHECK_VALUE(std::isfinite(weight), "nsn::joint_loss: the weight of '", subnetwork,
                    "' must be finite, but is ", weight, ".");
  weights_.insert_or_assign(std::move(subnetwork), weight);
  return *this;
}

JointLossOptions& JointLossOptions::weights(const std::map<std::string, double>& weights) {
  for (const auto& [name, value] : weights) weight(name, value);
  return *this;
}

JointLossOptions& JointLossOptions::label_smoothing(double share) {
  check_smoothing(share);
  label_smoothing_ = share;
  return *this;
}

JointLossOptions& JointLossOptions::label_smoothing(std::string subnetwork, double share) {
  check_smoothing(share);
  label_smoothings_.insert_or_assign(std::move(subnetwork), share);
  return *this;
}

JointLossOptions& JointLossOptions::teach(teach::Teacher teacher) {
  teach_ = std::move(teacher);
  return *this;
}

at::Tensor joint_loss(const Outputs& outputs, const Targets& targets,
                      const JointLossOptions& options) {
  TORCH_CHECK_VALUE(!outputs.is_empty(),
                    "nsn::joint_loss: there are no outputs. Pass those of "
                    "a joint pass.");
  const std::vector<Lane> lanes = lanes_of(outputs, targets, options);
  TORCH_CHECK_VALUE(
      options.label_smoothing() == 0.0 ||
          std::any_of(lanes.begin(), lanes.end(), [](const Lane& lane) { return !lane.loss; }),
      "nsn::joint_loss: label_smoothing is of the default cross entropy, but every "
      "loss was given. Smooth in that loss, and leave label_smoothing out.");
  const detail::Teaching teaching = teaching_of(lanes, options);
  if (at::Tensor loss = in_one_pass(lanes, options, teaching); loss.defined()) return loss;
  std::vector<std::string> names;
  std::vector<at::Tensor> said;
  for (const Lane& lane : lanes) {
    names.push_back(lane.name);
    said.push_back(lane.output);
  }
  said.emplace_back();  // the outside teacher's, in each lane's form
  at::Tensor total;
  std::optional<at::ScalarType> dtype;
  for (const size_t i : c10::irange(lanes.size())) {
    at::Tensor term = loss_of(lanes[i]);
    const at::ScalarType own = dtype_of(lanes[i], term);
    dtype = dtype ? c10::promoteTypes(*dtype, own) : own;
    const double share = teaching.teaches() ? teaching.shares[i] : 0.0;
    if (share > 0.0) {
      said.back() = outside_for(lanes[i], teaching.outside);
      term = (1.0 - share) * term + detail::distance_from_teacher(*options.teach(), teaching, names,
                                                                  said, i, counted(lanes[i]));
    }
    if (lanes[i].weight != 1.0) term = term * lanes[i].weight;
    total = total.defined() ? total + term : term;
  }
  return total.to(*dtype);
}

}  // namespace nsn
