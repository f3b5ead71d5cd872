#pragma once

#include <cstddef>
#include <iterator>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace nsn::detail {

/// Values by key, each made where it is asked for; those asked for last stay, at most so many. For
/// any number of threads.
template <typename Value>
class Recent {
 public:
  explicit Recent(size_t most) : most_(most) {}

  template <typename Make>
  std::shared_ptr<const Value> get(size_t key, const Make& make) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (auto known = find(key)) return known;
    }
    // Other threads need not wait for it; where one makes the same, the first that is done stays.
    auto made = std::make_shared<const Value>(make());
    Order old;  // goes when the lock is off
    const std::lock_guard<std::mutex> lock(mutex_);
    if (auto known = find(key)) return known;
    Order added{{key, made}};
    places_[key] = added.begin();
    order_.splice(order_.begin(), added);
    if (order_.size() > most_) {
      places_.erase(order_.back().first);
      old.splice(old.begin(), order_, std::prev(order_.end()));
    }
    return made;
  }

 private:
  using Order = std::list<std::pair<size_t, std::shared_ptr<const Value>>>;

  /// Under the lock.
  std::shared_ptr<const Value> find(size_t key) {
    const auto found = places_.find(key);
    if (found == places_.end()) return nullptr;
    order_.splice(order_.begin(), order_, found->second);
    return found->second->second;
  }

  size_t most_;
  std::mutex mutex_;  // over what follows
  Order order_;       // the last one first
  std::unordered_map<size_t, typename Order::iterator> places_;
};

}  // namespace nsn::detail
