#include "runtime/threads.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>

#include "runtime/model.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nsn::runtime {

namespace {

/// How long one waits awake.
constexpr std::chrono::microseconds kAwake{50};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits awake until `done`, or for kAwake; says whether it is done.
template <typename Done>
bool wait_awake(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kAwake;
  do {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

Threads::Threads(int count)
    : all_(count), others_(std::make_unique<Other[]>(static_cast<size_t>(count - 1))) {
  int64_t made = 0;
  try {
    for (; made < all_ - 1; ++made) {
      others_[static_cast<size_t>(made)].thread =
          std::thread([this, own = made + 1] { work(own); });
    }
  } catch (const std::system_error& error) {
    end(made);
    throw NoThreads("nsn: the system gives a session " + std::to_string(made + 1) + " of " +
                    std::to_string(count) + " threads: " + error.what() + ". Ask for fewer.");
  } catch (...) {
    end(made);
    throw;
  }
}

Threads::~Threads() { end(all_ - 1); }

void Threads::Other::call() {
  calls.fetch_add(1, std::memory_order_release);
  calls.notify_one();
}

void Threads::end(int64_t count) {
  ends_ = true;
  for (int64_t i = 0; i < count; ++i) others_[static_cast<size_t>(i)].call();
  for (int64_t i = 0; i < count; ++i) others_[static_cast<size_t>(i)].thread.join();
}

void Threads::run(int64_t count, int64_t grain, const kernels::Task& task) {
  if (count <= 0) return;
  const int64_t parts = std::min(all_, (count + grain - 1) / grain);
  if (parts <= 1) return task(0, count);
  task_ = &task;
  count_ = count;
  parts_ = parts;
  busy_.store(parts - 1, std::memory_order_relaxed);
  for (int64_t i = 0; i < parts - 1; ++i) others_[static_cast<size_t>(i)].call();
  share(0);
  // The others are at work, or about to be: this does not take long.
  while (!wait_awake([this] { return busy_.load(std::memory_order_acquire) == 0; })) {
    std::this_thread::yield();
  }
}

void Threads::share(int64_t own) const {
  (*task_)(own* count_ / parts_, (own + 1) * count_ / parts_);
}

void Threads::work(int64_t own) {
  const std::atomic<int>& calls = others_[static_cast<size_t>(own - 1)].calls;
  int seen = 0;
  for (;;) {
    const auto next = [&] { return calls.load(std::memory_order_acquire) != seen; };
    if (!wait_awake(next)) calls.wait(seen, std::memory_order_acquire);
    if (!next()) continue;
    // Past the largest number it goes on with the least, as the atomic one does.
    seen = static_cast<int>(static_cast<unsigned>(seen) + 1U);
    if (ends_) return;
    share(own);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace nsn::runtime
