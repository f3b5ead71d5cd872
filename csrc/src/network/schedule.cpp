#include "nsn/network/schedule.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <unordered_map>
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

/// Whether the sub-network at a place is a cell of a grid that is listed too, under another name.
bool is_listed_twin(const Description& description, size_t place) {
  if (place < description.subnetworks().size()) return false;
  const auto cell = description.subnetwork(place);
  const auto is_same = [&](const Description::Subnetwork& other) {
    return other.blocks == cell->blocks && other.parameter_count == cell->parameter_count &&
           std::all_of(cell->uses.begin(), cell->uses.end(), [&](const auto& use) {
             const Layout* slice = other.slice_of(use.first);
             return slice != nullptr && *slice == *cell->slice_of(use.first);
           });
  };
  const auto& listed = description.subnetworks();
  return std::any_of(listed.begin(), listed.end(), is_same);
}

/// `count` sub-networks, by place, but for those `without`, at random, in ascending order. What is
/// listed too is passed over, so that nobody runs twice under two names.
std::vector<size_t> choose(const Description& description, const std::set<size_t>& without,
                           int64_t count, uint64_t seed, int64_t step) {
  uint64_t state = seed;
  state = next(state) + static_cast<uint64_t>(step) * 0xd1342543de82ef95;
  // A shuffle of all of them that stops early; `moved` has those places that hold another number.
  std::unordered_map<size_t, size_t> moved;
  const auto at = [&](size_t place) {
    const auto found = moved.find(place);
    return found == moved.end() ? place : found->second;
  };
  std::set<size_t> chosen;
  size_t left = description.places() - without.size();
  while (static_cast<int64_t>(chosen.size()) < count && left > 0) {
    const size_t place = next(state) % left--;
    size_t number = at(place);
    moved[place] = at(left);
    for (const size_t other : without) number += other <= number ? 1 : 0;
    if (!is_listed_twin(description, number)) chosen.insert(number);
  }
  return {chosen.begin(), chosen.end()};
}

void check_count(const char* schedule, const char* what, int64_t count, int64_t least,
                 size_t most) {
  TORCH_CHECK_VALUE(count >= least && count <= static_cast<int64_t>(most),
                    "nsn::schedule::", schedule, ": ", what, " must be from ", least, " to ", most,
                    ", but is ", count, ".");
}

void check_known(const Description& description, const std::string& name) {
  TORCH_CHECK_VALUE(description.find(name), "nsn::schedule: the network has no sub-network '", name,
                    "'. They are ", detail::names_in(description), ".");
}

/// The cell of a grid that is the same as base, if there is one, by its place.
std::set<size_t> twin_of_base(const Description& description) {
  if (description.grid().size() == 0) return {};
  const size_t largest = description.places() - 1;
  if (description.lane(largest).size != description.lane(0).size) return {};
  return {largest};
}

/// The name at a place, of a cell without making it.
std::string name_at(const Description& description, size_t place) {
  const auto& listed = description.subnetworks();
  return place < listed.size() ? listed[place].name
                               : description.grid().name(place - listed.size());
}

uint64_t seed_or_draw(std::optional<uint64_t> seed) { return seed ? *seed : draw_seed(); }

}  // namespace

Schedule::Schedule(const Description& description, Function function, std::optional<uint64_t> seed,
                   const std::function<bool(size_t)>& runs)
    : description_(std::make_shared<const Description>(description)),
      function_(std::move(function)),
      seed_(seed),
      runs_(runs) {
  TORCH_CHECK_VALUE(function_,
                    "nsn::schedule: there is no function. Pass one, for example a "
                    "lambda that returns a Turn.");
}

Schedule& Schedule::weight(const std::string& subnetwork, double weight) {
  check_known(*description_, subnetwork);
  TORCH_CHECK_VALUE(!runs_ || runs_(description_->index_of(subnetwork)), "nsn::schedule: '",
                    subnetwork, "' has a weight, but never runs here. Leave its weight out.");
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
    check_known(*description_, turn.names[i]);
    TORCH_CHECK_VALUE(
        std::find(turn.names.begin(), turn.names.begin() + static_cast<std::ptrdiff_t>(i),
                  turn.names[i]) == turn.names.begin() + static_cast<std::ptrdiff_t>(i),
        "nsn::schedule: '", turn.names[i], "' is to run twice in step ", step, ". Name it once.");
  }
  for (const auto& [name, weight] : turn.weights) {
    check_known(*description_, name);
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

namespace {

/// For schedules that know nothing but what is listed.
std::function<bool(size_t)> is_listed(const Description& description) {
  return [count = description.subnetworks().size()](size_t place) { return place < count; };
}

}  // namespace

Schedule all(const Description& description) {
  const auto names = description.names();
  return {description, [names](int64_t, int64_t) { return Turn{names, {}}; }, std::nullopt,
          is_listed(description)};
}

Schedule sandwich(const Description& description, int64_t others, std::optional<uint64_t> seed) {
  const size_t listed = description.subnetworks().size();
  const auto smaller = [&](size_t a, size_t b) {
    return description.lane(a).is_smaller_than(description.lane(b));
  };
  std::vector<size_t> places(listed);
  std::iota(places.begin(), places.end(), size_t{0});
  const size_t largest = *std::max_element(places.begin(), places.end(), smaller);
  if (description.grid().size() > 0) places.push_back(listed);  // the narrowest and shallowest
  const size_t smallest = *std::min_element(places.begin(), places.end(), smaller);
  const std::set<size_t> twin = twin_of_base(description);
  std::set<size_t> apart = twin;
  apart.insert({largest, smallest});
  check_count("sandwich", "others", others, 0, description.places() - apart.size());
  const uint64_t number = seed_or_draw(seed);
  const auto function = [=](int64_t step, int64_t) {
    Turn turn{{name_at(description, largest)}, {}};
    if (smallest != largest) turn.names.push_back(name_at(description, smallest));
    for (const size_t place : choose(description, apart, others, number, step)) {
      turn.names.push_back(name_at(description, place));
    }
    return turn;
  };
  return {description, function, number, [twin](size_t place) { return twin.count(place) == 0; }};
}

Schedule random(const Description& description, int64_t count, std::optional<uint64_t> seed) {
  const std::set<size_t> twin = twin_of_base(description);
  check_count("random", "count", count, 1, description.places() - twin.size());
  const uint64_t number = seed_or_draw(seed);
  const auto function = [=](int64_t step, int64_t) {
    Turn turn;
    for (const size_t place : choose(description, twin, count, number, step)) {
      turn.names.push_back(name_at(description, place));
    }
    return turn;
  };
  return {description, function, number, [twin](size_t place) { return twin.count(place) == 0; }};
}

Schedule from_epoch(const Description& description, const std::map<std::string, int64_t>& first) {
  const auto names = description.names();
  for (const auto& [name, epoch] : first) {
    TORCH_CHECK_VALUE(std::find(names.begin(), names.end(), name) != names.end(),
                      "nsn::schedule: the network lists no sub-network '", name, "'. They are ",
                      detail::quoted(names), ".");
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
  Schedule result(description, function, std::nullopt, is_listed(description));
  result.at(0, 0);
  return result;
}

}  // namespace nsn::schedule
