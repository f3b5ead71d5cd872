#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include <nsn/network/outputs.h>
#include <nsn/network/teach.h>
#include <nsn/visibility.h>

namespace nsn {

/// Takes one sub-network's output and its targets, returns a scalar.
using Loss = std::function<at::Tensor(const at::Tensor& output, const at::Tensor& target)>;

/// What each sub-network is to give: one tensor for all, or one by name for each output.
class NSN_API Targets {
 public:
  Targets(at::Tensor all) : all_(std::move(all)) {}  // NOLINT(google-explicit-constructor)
  Targets(std::map<std::string, at::Tensor> each)    // NOLINT(google-explicit-constructor)
      : each_(std::move(each)) {}

  /// Throws c10::ValueError where there are none for the sub-network.
  const at::Tensor& of(const std::string& subnetwork) const;
  const std::map<std::string, at::Tensor>& each() const noexcept { return each_; }

 private:
  at::Tensor all_;
  std::map<std::string, at::Tensor> each_;
};

/// Options for `joint_loss`.
///
///     JointLossOptions().weight("sub2", 0.5).teach(teach::base(net->description()))
class NSN_API JointLossOptions {
 public:
  JointLossOptions() = default;
  JointLossOptions(Loss loss) : loss_(std::move(loss)) {}  // NOLINT(google-explicit-constructor)

  /// The loss of all that have none of their own. Default: cross entropy, mean over the batch.
  JointLossOptions& loss(Loss loss);
  /// The loss of one sub-network.
  JointLossOptions& loss(std::string subnetwork, Loss loss);

  /// w_l of one sub-network. Default: 1.
  JointLossOptions& weight(std::string subnetwork, double weight);
  JointLossOptions& weights(const std::map<std::string, double>& weights);

  /// The share of each target that all classes have alike, from 0 to 1, as torch's cross entropy
  /// has it (Szegedy et al., "Rethinking the Inception Architecture", 2015). Default: 0.
  JointLossOptions& label_smoothing(double share);
  /// Of one sub-network of the pass, in place of that of all. (What cannot fit the targets anyway,
  /// such as a softmax regression, is worse with it.)
  JointLossOptions& label_smoothing(std::string subnetwork, double share);

  /// Who learns from whom beside the targets. Default: nobody.
  JointLossOptions& teach(teach::Teacher teacher);

  const Loss& loss() const noexcept { return loss_; }
  const std::map<std::string, Loss>& losses() const noexcept { return losses_; }
  const std::map<std::string, double>& weights() const noexcept { return weights_; }
  /// Of those that are not named.
  double label_smoothing() const noexcept { return label_smoothing_; }
  const std::map<std::string, double>& label_smoothings() const noexcept {
    return label_smoothings_;
  }
  const std::optional<teach::Teacher>& teach() const noexcept { return teach_; }

 private:
  Loss loss_;
  std::map<std::string, Loss> losses_;
  std::map<std::string, double> weights_;
  double label_smoothing_ = 0.0;
  std::map<std::string, double> label_smoothings_;
  std::optional<teach::Teacher> teach_;
};

/// sum_l w_l * loss(output_l, targets_l) over the outputs of a joint pass. A weight scales the
/// lane's gradients of parameters and input.
///
/// The default loss is cross entropy, mean over the batch, of logits (B, C, *) and class indices
/// (B, *) (-100 is left out, by teachers too) or probabilities (B, C, *); with indices (B, T) also
/// of logits (B, T, C), as transformers give. Outputs of one shape go through it in one pass, with
/// what they learn from each other.
///
/// Throws c10::ValueError where there is no output, where an option names none of them, where the
/// default loss gets one class, or cannot tell which dimension has the classes, where a loss
/// returns no scalar, where a teacher is missing or of another shape, and where an option has no
/// use: label smoothing and an unnamed distance beside a loss of one's own.
NSN_API at::Tensor joint_loss(const Outputs& outputs, const Targets& targets,
                              const JointLossOptions& options = {});

}  // namespace nsn
