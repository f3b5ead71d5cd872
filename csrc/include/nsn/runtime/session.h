#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include <nsn/runtime/model.h>

namespace nsn::runtime {

/// How a run ended.
enum class Status {
  kOk = 0,
  kNoSuchSubnetwork,
  /// The file ends before what the sub-network needs: append the rest, and call the
  /// model's grow, or grow_to.
  kNotInFile,
  /// More samples than the session was made for, or fewer than 0.
  kBatchTooLarge,
  /// float32 where the sub-network takes int64, or the other way round.
  kWrongInputType,
  /// The input holds a number that is no row of the table that it is embedded by.
  kNoSuchRow,
  /// The output lies in the input's memory, which steps behind the first may still read.
  kOverlap,
};

/// What a status means, and the remedy.
NSN_API const char* message(Status status) noexcept;

/// Calls a task for parts of [0, count), each at least `grain` long but for the last, on threads of
/// the caller's, and returns when all is done: `task(data, begin, end)`. Parts may run at the same
/// time and in any order, on as many threads as there are. It must not throw: a run does not.
using ParallelFor = std::function<void(int64_t count, int64_t grain,
                                       void (*task)(const void* data, int64_t begin, int64_t end),
                                       const void* data)>;

struct SessionOptions {
  /// The most that either may be.
  static constexpr int64_t kMostBatch = int64_t{1} << 30;
  static constexpr int kMostThreads = 1024;

  /// The most samples of a run.
  int64_t max_batch = 1;
  /// How many compute a run: 1 is the caller's thread alone. More are the session's own, which wait
  /// for the next run awake for a moment, and then asleep; or, with `parallel_for`, the caller's,
  /// which is refused where `threads` is 1.
  int threads = 1;
  ParallelFor parallel_for = {};
};

/// The memory of one caller's runs, taken at once. Any number of them may run at the same time over
/// one model, each by one thread at a time. It keeps the model's file, whatever becomes of the
/// Model; one that has been moved from may be assigned to or destroyed, and nothing else.
///
/// With one thread a run allocates nothing, takes no lock, calls the system for nothing and throws
/// nothing. It may read weights from the disk, unless Model::load was called before.
///
/// Threads are of the process that made them: in a process forked from it, a session of several may
/// be neither run nor destroyed, since it would wait for them for ever.
class NSN_API Session {
 public:
  /// Throws Error where an option is out of range, the system gives no threads, or NSN_CPU_LEVEL
  /// names none of the processor's levels; std::bad_alloc where there is no memory.
  explicit Session(const Model& model, const SessionOptions& options = {});
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();

  /// Computes a sub-network, by its place among the model's: input (samples, *input), output
  /// (samples, *output), contiguous, each by itself; where there are no samples either may be null.
  /// The output is complete where the status is kOk.
  Status run(size_t subnetwork, const float* input, float* output, int64_t samples = 1) noexcept;
  Status run(size_t subnetwork, const int64_t* input, float* output, int64_t samples = 1) noexcept;

  /// Bytes of the memory that a session would take. It is what the file's plans ask for, however
  /// small the file is: of a file from strangers, ask first. Throws Error as the constructor does.
  static int64_t bytes_for(const Model& model, const SessionOptions& options = {});

  /// Bytes of its memory.
  int64_t bytes() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nsn::runtime
