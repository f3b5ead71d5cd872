#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace nsn::detail {

/// The latest of values that replace each other while any number of threads use them. Who asks for
/// it takes no lock and allocates nothing; a value goes when it has been replaced and its last use
/// ends.
template <typename Value>
class Latest {
  struct Node {
    std::unique_ptr<const Value> value;
    /// And one for being the latest.
    std::atomic<int64_t> uses{1};
  };

 public:
  /// Keeps a value that was the latest.
  class Use {
   public:
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use() { end(node_); }
    const Value& operator*() const { return *node_->value; }
    const Value* operator->() const { return node_->value.get(); }

   private:
    friend class Latest;
    explicit Use(Node* node) : node_(node) {}
    Node* node_;
  };

  Latest() = default;
  Latest(const Latest&) = delete;
  Latest& operator=(const Latest&) = delete;
  ~Latest() {
    if (Node* node = latest_.load()) end(node);
  }

  /// There has to be one.
  Use now() const {
    std::atomic<int64_t>& asking = asking_[phase_.load()];
    asking.fetch_add(1);
    Node* node = latest_.load();
    node->uses.fetch_add(1);
    asking.fetch_sub(1);
    return Use(node);
  }

  void replace(std::unique_ptr<const Value> value) {
    auto made = std::make_unique<Node>();
    made->value = std::move(value);
    const std::lock_guard<std::mutex> lock(replacing_);
    Node* old = latest_.exchange(made.release());
    // Who asked before may have the old one in hand and not counted yet. Those who ask meanwhile
    // count elsewhere, so that each wait ends.
    for (int i = 0; i < 2; ++i) {
      const size_t before = phase_.load();
      phase_.store(1 - before);
      while (asking_[before].load() != 0) std::this_thread::yield();
    }
    if (old != nullptr) end(old);
  }

 private:
  static void end(Node* node) {
    if (node->uses.fetch_sub(1) == 1) delete node;
  }

  /// How many are between looking for the latest and counting their use.
  mutable std::array<std::atomic<int64_t>, 2> asking_{};
  /// Where those who ask now count.
  std::atomic<size_t> phase_{0};
  std::atomic<Node*> latest_{nullptr};
  std::mutex replacing_;
};

}  // namespace nsn::detail
