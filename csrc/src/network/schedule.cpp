#include "nsn/network/schedule.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "description/subnetworks.h"
#include "nsn/network/core.h"

namespace nsn::schedule {

namespace {

/// The next number of a sequence, each as good as random (splitmix64, Steele et al., 2014).
uint64_t next(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

/// `count` of `names` at random, in their order.
std::vector<std::string> choose(const std::vector<std::string>& names, int64_t count, uint64_t seed,
                                int64_t step) {
  uint64_t state = seed;
  state = next(state) + static_cast<uint64_t>(step) * 0xd1342543de82ef95;
  std::vector<bool> chosen(names.size(), false);
  std::vector<size_t> left(names.size());
  for (const size_t i : c10::irange(names.size())) left[i] = i;
  for (int64_t taken = 0; taken < count; ++taken) {
    const size_t at = next(state) % left.size();
    chosen[left[at]] = true;
    left.erase(left.begin() + static_cast<std::ptrdiff_t>(at));
  }
  std::vector<std::string> result;
  for (const size_t i : c10::irange(names.size())) {
    if (chosen[i]) result.push_back(names[i]);
  }
  return result;
}

void check_count(const char* schedule, const char* what, int64_t count, int64_t least,
                 size_t most) {
  TORCH_CHECK_VALUE(count >= least && count <= static_cast<int64_t>(most),
                    "nsn::schedule::", schedule, ": ", what, " must be from ", least, " to ", most,
                    ", but is ", count, ".");
}

void check_known(const std::vector<std::string>& names, const std::string& name) {
  TORCH_CHECK_VALUE(std::find(names.begin(), names.end(), name) != names.end(),
                    "nsn::schedule: the network has no sub-network '", name, "'. They are ",
                    detail::quoted(names), ".");
}

uint64_t seed_or_draw(std::optional<uint64_t> seed) { return seed ? *seed : draw_seed(); }

}  // namespace

Schedule::Schedule(const Description& description, Function function, std::optional<uint64_t> seed)
    : names_(description.names()), function_(std::move(function)), seed_(seed) {
  TORCH_CHECK_VALUE(function_,
                    "nsn::schedule: there is no function. Pass one, for example a "
                    "lambda that returns a Turn.");
}

Schedule& Schedule::weight(const std::string& subnetwork, double weight) {
  check_known(names_, subnetwork);
  TORCH_CHECK_VALUE(std::isfinite(weight), "nsn::schedule: the weight of '", subnetwork,
                    "' must be finite, but is ", weight, ".");
  weights_[subnetwork] = weight;
  return *this;
}

Turn Schedule::at(int64_t step, int64_t epoch) const {
  TORCH_CHECK_VALUE(step >= 0 && epoch >= 0,
                    "nsn::schedule: steps and epochs count from 0, but got ", step, " and ", epoch,
                    ".");
  Turn turn = function_(step, epoch);
  TORCH_CHECK_VALUE(!turn.names.empty(), "nsn::schedule: nobody runs in step ", step, " of epoch ",
                    epoch, ". Name at least one sub-network.");
  for (const size_t i : c10::irange(turn.names.size())) {
    check_known(names_, turn.names[i]);
    TORCH_CHECK_VALUE(
        std::find(turn.names.begin(), turn.names.begin() + static_cast<std::ptrdiff_t>(i),
                  turn.names[i]) == turn.names.begin() + static_cast<std::ptrdiff_t>(i),
        "nsn::schedule: '", turn.names[i], "' is to run twice in step ", step, ". Name it once.");
  }
  for (const auto& [name, weight] : turn.weights) {
    check_known(names_, name);
    TORCH_CHECK_VALUE(std::find(turn.names.begin(), turn.names.end(), name) != turn.names.end(),
                      "nsn::schedule: '", name, "' has a weight in step ", step,
                      ", but does not run in it. Leave its weight out.");
    TORCH_CHECK_VALUE(std::isfinite(weight), "nsn::schedule: the weight of '", name,
                      "' must be finite, but is ", weight, " in step ", step, ".");
  }
  for (const std::string& name : turn.names) {
    const auto own = weights_.find(name);
    if (own == weights_.end()) continue;
    turn.weights.emplace(name, 1.0).first->second *= own->second;
  }
  return turn;
}

Schedule all(const Description& description) {
  const auto names = description.names();
  return {description, [names](int64_t, int64_t) { return Turn{names, {}}; }};
}

Schedule sandwich(const Description& description, int64_t others, std::optional<uint64_t> seed) {
  const auto& subnetworks = description.subnetworks();
  const auto by_rank = [](const auto& a, const auto& b) { return a.rank < b.rank; };
  const auto [smallest, largest] =
      std::minmax_element(subnetworks.begin(), subnetworks.end(), by_rank);
  std::vector<std::string> ends{largest->name};
  if (smallest != largest) ends.push_back(smallest->name);
  std::vector<std::string> rest;
  for (const auto& each : subnetworks) {
    if (&each != &*smallest && &each != &*largest) rest.push_back(each.name);
  }
  check_count("sandwich", "others", others, 0, rest.size());
  const uint64_t number = seed_or_draw(seed);
  const auto function = [=](int64_t step, int64_t) {
    Turn turn{ends, {}};
    for (std::string& name : choose(rest, others, number, step)) {
      turn.names.push_back(std::move(name));
    }
    return turn;
  };
  return {description, function, number};
}

Schedule random(const Description& description, int64_t count, std::optional<uint64_t> seed) {
  const auto names = description.names();
  check_count("random", "count", count, 1, names.size());
  const uint64_t number = seed_or_draw(seed);
  const auto function = [=](int64_t step, int64_t) {
    return Turn{choose(names, count, number, step), {}};
  };
  return {description, function, number};
}

Schedule from_epoch(const Description& description, const std::map<std::string, int64_t>& first) {
  const auto names = description.names();
  for (const auto& [name, epoch] : first) {
    check_known(names, name);
    TORCH_CHECK_VALUE(epoch >= 0, "nsn::schedule::from_epoch: the epoch of '", name,
                      "' counts from 0, but is ", epoch, ".");
  }
  const auto function = [=](int64_t, int64_t epoch) {
    Turn turn;
    for (const std::string& name : names) {
      const auto own = first.find(name);
      if (own == first.end() || own->second <= epoch) turn.names.push_back(name);
    }
    return turn;
  };
  Schedule result(description, function);
  result.at(0, 0);
  return result;
}

}  // namespace nsn::schedule
