#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include <nsn/network/parameter_table.h>
#include <nsn/visibility.h>

namespace nsn {

/// A const handle on one sub-network, for inference. It evaluates (no dropout) and records no
/// gradients, whatever the network's mode and the caller's grad mode are. It shares the network's
/// storages and copies no weight; copying a View copies a pointer, so an application switches by
/// choosing among Views that it made once.
///
/// A View holds the storages of the moment it was made: updates in place (optimizers, loading a
/// state) are seen; after the network moved to other storages (`to`) the View keeps the old ones,
/// and `stale` says so. It outlives its network. Any number of threads may call Views of one
/// network at once; training the network meanwhile is a race that the caller prevents.
class NSN_API View {
 public:
  /// What Network::view calls. Throws c10::ValueError for an unknown sub-network, and for one that
  /// was not loaded.
  View(const ParameterTable& network, const std::string& subnetwork);

  /// y for a batch x: (B, *input) -> (B, *output).
  at::Tensor operator()(const at::Tensor& x) const;

  /// The sub-network's name.
  const std::string& name() const;

  /// What it reads of the network's parameters: views of their storages, in the order of the names,
  /// each leading part of several things as a dimension of its own.
  std::vector<at::Tensor> parameters() const;

  /// Whether the network now has other storages than this View reads. False once the network is
  /// gone: nothing newer exists then.
  bool stale() const;

  /// The same, against tensors of all blocks that the caller knows to be the network's.
  bool stale(at::TensorList current) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace nsn
