#include "nsn/network/weight_average.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <memory>

namespace nsn {

WeightAverage::WeightAverage(const Network& net, double decay)
    : decay_(decay), average_(std::dynamic_pointer_cast<NetworkImpl>(net->clone())) {
  TORCH_CHECK_VALUE(decay >= 0.0 && decay < 1.0,
                    "nsn::WeightAverage: the decay must be at least 0 and below 1, but is ", decay,
                    ". Take 0.999, for example.");
  average_->eval();
  for (at::Tensor& parameter : average_->parameters()) parameter.requires_grad_(false);
}

void WeightAverage::update(const Network& net) {
  const at::NoGradGuard no_grad;
  const ParameterTable from = net->parameter_table(), to = average_->parameter_table();
  if (known_ != from.shared_core()) {
    TORCH_CHECK_VALUE(from.description() == to.description(),
                      "nsn::WeightAverage: the network has another description than the one that "
                      "is averaged. Make another average of it.");
    known_ = from.shared_core();
  }
  for (const size_t place : c10::irange(from.size())) {
    const at::Tensor& average = to[place];
    if (is_new_ || !at::isFloatingType(average.scalar_type())) {
      average.copy_(from[place]);
    } else {
      average.lerp_(from[place], 1.0 - decay_);
    }
  }
  is_new_ = false;
}

}  // namespace nsn
