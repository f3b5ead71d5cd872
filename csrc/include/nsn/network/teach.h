#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include <nsn/description/description.h>
#include <nsn/visibility.h>

// Teachers: whose outputs sub-networks learn from, beside the targets; an option of joint_loss. A
// learner's loss becomes
//
//     (1 - a) * loss(output, target) + a * distance(output, what the teacher says)
//
// with a its `weight`. No gradient goes through it to the teacher.
//
//     const auto teacher = nsn::teach::base(net->description()).weight(0.3);
//     joint_loss(outputs, labels, JointLossOptions().teach(teacher)).backward();

namespace nsn::teach {

enum class Kind { kBase, kNextLarger, kMutual, kOutside };
enum class Distance { kCrossEntropy, kSquaredError };

class NSN_API Teacher {
 public:
  /// What the functions below make. `output` is that of an outside teacher.
  Teacher(Kind kind, const Description& description, at::Tensor output = {});

  /// How much of a learner's loss is its teacher's, from 0 to 1: of all that are not named.
  /// Default: 0.5.
  Teacher& weight(double weight);
  /// Of one learner. Throws c10::ValueError where the network has no such sub-network, or it never
  /// learns here.
  Teacher& weight(const std::string& subnetwork, double weight);

  /// T: the cross entropy is of softmax(output / T) from softmax(teacher / T), times T^2, so that
  /// gradients stay as large (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).
  /// Default: 1.
  Teacher& temperature(double temperature);

  /// Cross entropy, for classes, or mean squared error, for numbers. Default: cross entropy where
  /// the loss is that; beside a loss of one's own it has to be said.
  Teacher& by(Distance distance);

  Kind kind() const noexcept { return kind_; }
  /// "base", "next_larger", "mutual" or "outside".
  const char* name() const noexcept;
  const std::optional<Distance>& distance() const noexcept { return distance_; }
  double temperature() const noexcept { return temperature_; }
  const at::Tensor& output() const noexcept { return output_; }
  double weight_of(const std::string& subnetwork) const;
  /// A sub-network, to compare it by size; throws c10::ValueError where the network has no such
  /// one.
  merge::Lane lane_of(const std::string& subnetwork) const;

 private:
  Kind kind_;
  std::shared_ptr<const Description> description_;
  double weight_ = 0.5;
  std::map<std::string, double> weights_;
  double temperature_ = 1.0;
  std::optional<Distance> distance_;
  at::Tensor output_;
};

/// All others learn from base (Yu & Huang, "Universally Slimmable Networks", 2019, in-place
/// distillation). A pass without base is refused.
NSN_API Teacher base(const Description& description);

/// Each learns from the next larger one of the pass; the largest has the targets alone.
NSN_API Teacher next_larger(const Description& description);

/// Each learns from the mean of all others of the pass: of their probabilities, or numbers (Zhang
/// et al., "Deep Mutual Learning", 2018). One that runs by itself has the targets alone.
NSN_API Teacher mutual(const Description& description);

/// All learn from another network's output for the same batch, which has the shape of theirs.
NSN_API Teacher outside(const Description& description, const at::Tensor& output);
/// The same with teacher(x), which is not recorded. A module has to be in eval().
NSN_API Teacher outside(const Description& description,
                        const std::function<at::Tensor(const at::Tensor&)>& teacher,
                        const at::Tensor& x);

}  // namespace nsn::teach
