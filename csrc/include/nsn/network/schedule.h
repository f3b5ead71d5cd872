#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nsn/description/description.h>
#include <nsn/visibility.h>

// Schedules: which sub-networks run in which step, and with which weight.
//
//     const auto schedule = nsn::schedule::sandwich(net->description(), 2);
//     for (int64_t step = 0; ...; ++step) {
//       const auto turn = schedule.at(step, epoch);
//       const auto outputs = net->joint(x, turn.names);
//       nsn::joint_loss(outputs, y, nsn::JointLossOptions().weights(turn.weights)).backward();
//
// Random choices are a function of a seed and the step, so that a run that goes on needs nothing
// but these two, and all ranks of a process group that have the seed run the same.

namespace nsn::schedule {

/// Who trains in a step.
struct Turn {
  std::vector<std::string> names;
  /// w_l of those that have another than 1.
  std::map<std::string, double> weights;
};

class NSN_API Schedule {
 public:
  using Function = std::function<Turn(int64_t step, int64_t epoch)>;

  /// What the functions below make; `description` is whose names are known, `runs` tells whether a
  /// sub-network, by its place, may ever run. Default: all may.
  Schedule(const Description& description, Function function,
           std::optional<uint64_t> seed = std::nullopt,
           const std::function<bool(size_t)>& runs = {});

  /// w_l of one sub-network in all steps, times what its turn gives. Default: 1. Throws
  /// c10::ValueError for one that never runs here.
  Schedule& weight(const std::string& subnetwork, double weight);

  /// Steps and epochs are counted from 0. Cells of a grid that do not fit are passed over. Throws
  /// c10::ValueError where nobody would run, and where a function of one's own names somebody twice
  /// or whom the network does not have.
  Turn at(int64_t step, int64_t epoch) const;

  /// Of the random choices; none where there are none.
  const std::optional<uint64_t>& seed() const noexcept { return seed_; }

 private:
  std::shared_ptr<const Description> description_;
  Function function_;
  std::optional<uint64_t> seed_;
  std::function<bool(size_t)> runs_;
  std::map<std::string, double> weights_;
};

/// All that are listed in every step.
NSN_API Schedule all(const Description& description);

/// The largest, the smallest (of a grid the narrowest and shallowest), and `others` of the rest at
/// random, cells of a grid among them (but for those that are the same as a listed one; Yu &
/// Huang, "Universally Slimmable Networks", 2019, the sandwich rule). `seed`: default, one of
/// torch's generator.
NSN_API Schedule sandwich(const Description& description, int64_t others,
                          std::optional<uint64_t> seed = std::nullopt);

/// `count` of all at random, cells of a grid among them (but for those that are the same as a
/// listed one), each set as likely as any other.
NSN_API Schedule random(const Description& description, int64_t count,
                        std::optional<uint64_t> seed = std::nullopt);

/// Each that is listed from an epoch of its own on; those that are not named, from the first.
/// Throws c10::ValueError where nobody would run in the first one.
NSN_API Schedule from_epoch(const Description& description,
                            const std::map<std::string, int64_t>& first);

}  // namespace nsn::schedule
