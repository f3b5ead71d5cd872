// Runs of a sub-network of a runtime file, called and timed in C++: a library that inference.py
// loads, so that all ways of inference are measured in one process and one run.

#include <nsn/runtime/session.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>

using namespace nsn::runtime;

namespace {

struct Runs {
  Model model;
  size_t place;
  Session session;

  Runs(const char* file, const char* name, const SessionOptions& options)
      : model(Model::open(file)), place(model.index_of(name)), session(model, options) {
    model.load(place);
  }
};

}  // namespace

extern "C" {

/// Null where the file or an option is wrong.
NSN_API void* nsn_runs_new(const char* file, const char* name, int64_t batch, int threads) {
  try {
    return std::make_unique<Runs>(file, name, SessionOptions{batch, threads, {}}).release();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return nullptr;
  }
}

NSN_API void nsn_runs_free(void* handle) { delete static_cast<Runs*>(handle); }

/// Runs until the seconds have passed, once at least, and `most` times at most. Writes how long
/// each run took, in microseconds; returns how many there were, 0 where one went wrong.
NSN_API int64_t nsn_runs_time(void* handle, const void* input, float* output, int64_t batch,
                              double seconds, double* times, int64_t most) {
  using Clock = std::chrono::steady_clock;
  auto& [model, place, session] = *static_cast<Runs*>(handle);
  const bool takes_numbers = model.subnetworks()[place].takes_numbers;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  int64_t count = 0;
  do {
    const auto start = Clock::now();
    const Status status =
        takes_numbers ? session.run(place, static_cast<const int64_t*>(input), output, batch)
                      : session.run(place, static_cast<const float*>(input), output, batch);
    times[count++] = std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    if (status != Status::kOk) return 0;
  } while (count < most && Clock::now() < end);
  return count;
}

}  // extern "C"
