#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/product.h"

namespace nsn::runtime {

/// Threads of one session, which its caller is one of. Between runs they wait awake for a moment,
/// since the next step mostly comes at once, and then asleep.
class Threads {
 public:
  /// `count` threads, the caller's among them.
  explicit Threads(int count);
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads();

  /// As kernels::ParallelFor; from one thread at a time.
  void run(int64_t count, int64_t grain, const kernels::Task& task);

 private:
  void work(int64_t own);
  /// Ends all of them.
  void end();
  /// One thread's share of the task under way.
  void share(int64_t own) const;

  // What is under way. Set before `round` counts up, and read by those who have seen that.
  const kernels::Task* task_ = nullptr;
  int64_t count_ = 0, parts_ = 0;
  bool ends_ = false;
  std::atomic<uint64_t> round_ = 0;
  /// How many threads have not done with it yet.
  std::atomic<int64_t> busy_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace nsn::runtime
