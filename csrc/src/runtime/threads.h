#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

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

  /// As kernels::ParallelFor; from one thread at a time. Of few parts it calls so many threads, and
  /// leaves the others asleep.
  void run(int64_t count, int64_t grain, const kernels::Task& task);

 private:
  /// A thread beside the caller's, and how often it has been called. On a cache line of its own.
  struct alignas(64) Other {
    std::atomic<int> calls = 0;
    std::thread thread;

    void call();
  };

  /// What the thread of the part `own` does until the end.
  void work(int64_t own);
  /// Ends the first `count` of the others.
  void end(int64_t count);
  /// One thread's share of the task under way.
  void share(int64_t own) const;

  // What is under way. Set before a thread is called, and read by those who are.
  const kernels::Task* task_ = nullptr;
  int64_t count_ = 0, parts_ = 0;
  bool ends_ = false;
  /// How many of those called have not done with it yet.
  std::atomic<int64_t> busy_ = 0;
  int64_t all_;
  std::unique_ptr<Other[]> others_;
};

}  // namespace nsn::runtime
