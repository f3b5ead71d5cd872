#pragma once

#include <nsn/network/network.h>
#include <nsn/visibility.h>

namespace nsn {

/// The exponential moving average of a network's parameters and of its batch norms' statistics:
/// evaluate and save that in place of the network (Polyak & Juditsky, 1992; Tarvainen & Valpola,
/// "Mean teachers", 2017). In Python torch.optim.swa_utils.AveragedModel does it, with
/// nsn.average_fn.
///
///     nsn::WeightAverage average(net, 0.999);
///     ...
///     optimizer.step();
///     average.update(net);
///     ...
///     nsn::save(average.network(), "model.safetensors");
class NSN_API WeightAverage {
 public:
  /// A copy of the network, which the first update overwrites: to go on with an average that was
  /// saved, make one of that, and call `update` with it once. Throws c10::ValueError unless
  /// 0 <= decay < 1.
  WeightAverage(const Network& net, double decay);

  /// average <- decay * average + (1 - decay) * net; counters are taken over. Throws
  /// c10::ValueError for a network of another description.
  void update(const Network& net);

  /// In eval(), whose parameters need no gradient.
  const Network& network() const noexcept { return average_; }

 private:
  double decay_;
  bool is_new_ = true;
  /// Of the last network that was compared: its description fits.
  std::shared_ptr<const Core> known_;
  Network average_;
};

}  // namespace nsn
