#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <string>
#include <vector>

#include <nsn/network/parameter_table.h>
#include <nsn/visibility.h>

namespace nsn {

/// Parameters that share one weight decay.
struct DecayGroup {
  std::vector<at::Tensor> parameters;
  /// Places of the parameters in Description::parameters().
  std::vector<size_t> places;
  double weight_decay = 0.0;
};

/// The network's parameters by the decay that each is to get, those without decay last. Weights get
/// `weight_decay`, biases none.
///
/// With `of`, the decay stands for an L2 term weight_decay / 2 * |W|^2 in the loss of that
/// sub-network alone: a weight gets weight_decay times the coefficient that the merge rule gives
/// the sub-network's gradient when all run together. The paper: 4.5e-5 * |W|^2 on base's loss is
/// weight_decay = 9e-5, of = "base"; merging leaves 9e-5 on hidden1, 4.5e-5 on hidden2 and none on
/// output. Throws c10::ValueError for an unknown sub-network, and with `of` for function rules.
NSN_API std::vector<DecayGroup> decay_groups(const ParameterTable& network, double weight_decay,
                                             const std::string& of = "");

}  // namespace nsn
