#include "runtime/threads.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>

#include "nsn/runtime/model.h"

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

Threads::Threads(int count) {
  threads_.reserve(static_cast<size_t>(count));
  try {
    for (int64_t own = 1; own < count; ++own) {
      threads_.emplace_back([this, own] { work(own); });
    }
  } catch (const std::system_error& error) {
    const size_t made = threads_.size();
    end();
    throw Error("nsn: the system gives a session " + std::to_string(made + 1) + " of " +
                std::to_string(count) + " threads: " + error.what() + ". Ask for fewer.");
  }
}

Threads::~Threads() { end(); }

void Threads::end() {
  ends_ = true;
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  for (std::thread& each : threads_) each.join();
}

void Threads::run(int64_t count, int64_t grain, const kernels::Task& task) {
  if (count <= 0) return;
  const auto all = static_cast<int64_t>(threads_.size()) + 1;
  const int64_t parts = std::min(all, (count + grain - 1) / grain);
  if (parts <= 1) return task(0, count);
  task_ = &task;
  count_ = count;
  parts_ = parts;
  busy_.store(all - 1, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  share(0);
  // The others are at work, or about to be: this does not take long.
  while (!wait_awake([this] { return busy_.load(std::memory_order_acquire) == 0; })) {
    std::this_thread::yield();
  }
}

void Threads::share(int64_t own) const {
  if (own < parts_) (*task_)(own* count_ / parts_, (own + 1) * count_ / parts_);
}

void Threads::work(int64_t own) {
  uint64_t seen = 0;
  for (;;) {
    const auto next = [&] { return round_.load(std::memory_order_acquire) != seen; };
    if (!wait_awake(next)) round_.wait(seen, std::memory_order_acquire);
    if (!next()) continue;
    ++seen;
    if (ends_) return;
    share(own);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace nsn::runtime
