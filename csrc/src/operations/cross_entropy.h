#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <vector>

namespace nsn::detail {

/// What lanes learn from beside the targets; nothing where there are no shares.
struct Teaching {
  /// Of each lane: how much of its loss is its teacher's.
  std::vector<double> shares;
  /// Of each lane: its teacher as a mixture of the lanes, and last of the outside teacher. The sum
  /// is 1 where it has a share.
  std::vector<std::vector<double>> mixtures;
  double temperature = 1.0;
  /// The outside teacher's logits, as a lane's, or undefined.
  at::Tensor outside;

  bool teaches() const;
};

/// What a lane's teacher says, of what each lane and the outside teacher said.
at::Tensor teacher_of(const std::vector<at::Tensor>& said, const Teaching& teaching, size_t lane);

/// What cross entropies of several lanes are of, apart from logits and targets.
struct JointCrossEntropyOptions {
  /// w_l, and the share of the targets that all classes have alike; one a lane.
  std::vector<double> weights, label_smoothing;
  Teaching teaching;
};

/// sum_l w_l * mean over the batch of
///
///     (1 - a_l) * cross entropy(logits_l, targets)
///       + a_l * T^2 * cross entropy(logits_l / T, softmax of the teacher's logits / T)
///
/// of logits: (B, C), class indices targets: (B), -100 left out. One pass over the logits of all
/// lanes computes the loss and its gradient, which lies ready, one lane behind the other, when
/// backward asks for it.
at::Tensor joint_cross_entropy(const std::vector<at::Tensor>& logits, const at::Tensor& targets,
                               const JointCrossEntropyOptions& options);

/// Whether the one pass takes these, (N, C, *) and class indices, as rows (N', C): on the CPU,
/// float, or double with few classes (for many torch's own, in vectors, is the faster), no
/// transform active.
bool takes_joint_cross_entropy(const std::vector<at::Tensor>& logits, const at::Tensor& targets);

}  // namespace nsn::detail
