#include "nsn/network/schedule.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <numeric>
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

/// The one at a place if it may be drawn; null where it is a cell whose choices do not fit each
/// other, or one that is listed too, under another name.
Description::SubnetworkPtr drawable(const Description& description, size_t place) {
  Description::SubnetworkPtr own;
  try {
    own = description.subnetwork(place);
  } catch (const c10::ValueError&) {
    return nullptr;
  }
  if (description.is_listed(place)) return own;
  const auto& listed = description.subnetworks();
  const bool is_twin = std::any_of(listed.begin(), listed.end(),
                                   [&](const auto& each) { return each.is_same_as(*own); });
  return is_twin ? nullptr : own;
}

/// `count` sub-networks besides those in `turn`, at random; added to it in ascending order of their
/// places. Cells that do not fit, and those that are the same as another one that is listed or in
/// the turn, are passed over: nobody runs twice under two names.
void draw(const Description& description, int64_t count, uint64_t seed, int64_t step,
          std::vector<size_t>& turn) {
  uint64_t state = seed;
  state = next(state) + static_cast<uint64_t>(step) * 0xd1342543de82ef95;
  std::vector<Description::SubnetworkPtr> running;
  for (const size_t place : turn) running.push_back(description.subnetwork(place));
  // A shuffle of all of them that stops early; `moved` has those places that hold another number.
  std::unordered_map<size_t, size_t> moved;
  const auto at = [&](size_t place) {
    const auto found = moved.find(place);
    return found == moved.end() ? place : found->second;
  };
  std::vector<size_t> drawn;
  for (size_t left = description.places();
       left > 0 && static_cast<int64_t>(drawn.size()) < count;) {
    const size_t place = next(state) % left--;
    const size_t number = at(place);
    moved[place] = at(left);
    auto own = drawable(description, number);
    const bool runs = own && std::none_of(running.begin(), running.end(),
                                          [&](const auto& each) { return each->is_same_as(*own); });
    if (!runs) continue;
    drawn.push_back(number);
    running.push_back(std::move(own));
  }
  TORCH_CHECK_VALUE(static_cast<int64_t>(drawn.size()) == count, "nsn::schedule: ", count,
                    " sub-networks are to be drawn, but only ", drawn.size(),
                    " fit and differ from the others. Ask for fewer.");
  std::sort(drawn.begin(), drawn.end());
  turn.insert(turn.end(), drawn.begin(), drawn.end());
}

void check_least(const char* schedule, const char* what, int64_t count, int64_t least) {
  TORCH_CHECK_VALUE(count >= least, "nsn::schedule::", schedule, ": ", what, " must be at least ",
                    least, ", but is ", count, ".");
}

void check_known(const Description& description, const std::string& name) {
  TORCH_CHECK_VALUE(description.find(name), "nsn::schedule: the network has no sub-network '", name,
                    "'. They are ", detail::names_in(description), ".");
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
std::function<bool(size_t)> listed_alone(const Description& description) {
  return [count = description.subnetworks().size()](size_t place) { return place < count; };
}

Turn turn_of(const Description& description, const std::vector<size_t>& places) {
  Turn turn;
  for (const size_t place : places) turn.names.push_back(description.name(place));
  return turn;
}

/// One that draws: asked once, so that a count which cannot be is refused when it is made.
Schedule drawing(const std::shared_ptr<const Description>& description, uint64_t seed,
                 const std::vector<size_t>& always, int64_t count) {
  const auto function = [=](int64_t step, int64_t) {
    std::vector<size_t> places = always;
    draw(*description, count, seed, step, places);
    return turn_of(*description, places);
  };
  Schedule result(*description, function, seed,
                  [description](size_t place) { return drawable(*description, place) != nullptr; });
  result.at(0, 0);
  return result;
}

}  // namespace

Schedule all(const Description& description) {
  const auto names = description.names();
  return {description, [names](int64_t, int64_t) { return Turn{names, {}}; }, std::nullopt,
          listed_alone(description)};
}

Schedule sandwich(const Description& description, int64_t others, std::optional<uint64_t> seed) {
  check_least("sandwich", "others", others, 0);
  const size_t listed = description.subnetworks().size();
  const auto smaller = [&](size_t a, size_t b) {
    return description.lane(a).is_smaller_than(description.lane(b));
  };
  std::vector<size_t> places(listed);
  std::iota(places.begin(), places.end(), size_t{0});
  std::vector<size_t> ends{*std::max_element(places.begin(), places.end(), smaller)};
  if (description.grid().size() > 0) places.push_back(listed);  // the narrowest and shallowest
  const size_t smallest = *std::min_element(places.begin(), places.end(), smaller);
  if (smallest != ends[0]) ends.push_back(smallest);
  return drawing(std::make_shared<const Description>(description), seed_or_draw(seed), ends,
                 others);
}

Schedule random(const Description& description, int64_t count, std::optional<uint64_t> seed) {
  check_least("random", "count", count, 1);
  return drawing(std::make_shared<const Description>(description), seed_or_draw(seed), {}, count);
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
  Schedule result(description, function, std::nullopt, listed_alone(description));
  result.at(0, 0);
  return result;
}

}  // namespace nsn::schedule
