#pragma once

#include <torch/optim/optimizer.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nsn/network/decay.h>
#include <nsn/network/network.h>
#include <nsn/visibility.h>

namespace nsn {

/// `decay_groups` as groups for a torch optimizer, each with a copy of `options` (SGDOptions,
/// AdamWOptions, ...: any that have weight_decay).
///
///     torch::optim::SGD optimizer(nsn::param_groups(net, options, 9e-5, "base"), options);
template <typename Options>
std::vector<torch::optim::OptimizerParamGroup> param_groups(const Network& net,
                                                            const Options& options,
                                                            double weight_decay,
                                                            const std::string& of = "") {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (DecayGroup& group : decay_groups(net->parameter_table(), weight_decay, of)) {
    auto own = std::make_unique<Options>(options);
    own->weight_decay(group.weight_decay);
    groups.emplace_back(std::move(group.parameters), std::move(own));
  }
  return groups;
}

}  // namespace nsn
