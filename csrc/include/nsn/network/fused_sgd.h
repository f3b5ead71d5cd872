#pragma once

#include <torch/optim/sgd.h>

#include <nsn/visibility.h>

namespace nsn {

/// torch::optim::SGD whose step is one pass over each parameter and its momentum, as Python's
/// torch.optim.SGD(fused=True); torch's own takes one pass for each term of the formula. Same
/// options, state and files; the results differ by rounding.
///
///     nsn::FusedSGD optimizer(net->parameters(), torch::optim::SGDOptions(0.03).momentum(0.9));
///
/// Parameters and gradients must be dense and floating, a parameter and its gradient of one dtype
/// and device; layouts are free. Throws c10::ValueError, before anything is changed, where they are
/// not.
class NSN_API FusedSGD : public torch::optim::SGD {
 public:
  using SGD::SGD;

  /// One step for all parameters that have a gradient; returns what `closure` returns.
  at::Tensor step(LossClosure closure = nullptr) override;
};

}  // namespace nsn
