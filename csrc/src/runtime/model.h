#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/panels.h"
#include "nsn/runtime/model.h"
#include "plan/run.h"
#include "runtime/file.h"
#include "runtime/mapped_file.h"

namespace nsn::runtime {

/// Not the file is wrong, but what is asked of it.
struct Misuse : Error {
  using Error::Error;
};

/// The system does not give a session its threads.
struct NoThreads : Error {
  using Error::Error;
};

struct Model::State {
  /// Throw Error.
  explicit State(const std::string& path);
  explicit State(std::string_view memory);

  /// A sub-network whose weights are there, ready to run.
  struct Ready {
    std::vector<plan::Tensor> tensors;
    std::deque<kernels::Panels> panels;  // which tensors point to
  };

  /// Null where the file is too short.
  const Ready* ready(size_t subnetwork) const {
    return made[subnetwork].load(std::memory_order_acquire);
  }

  /// Over `make_ready` and what it sets.
  std::mutex growing;
  /// Makes those ready whose weights are there now, of a file of so many bytes.
  void make_ready(int64_t now);

  /// What messages call the file.
  std::string name;
  /// Null where the file is memory of the caller's.
  std::unique_ptr<MappedFile> mapped;
  /// Where its bytes are, and how many of them are there by now.
  const char* data;
  int64_t size = 0;
  File file;
  std::vector<Subnetwork> subnetworks;
  /// Of each sub-network what is ready; set once, by one thread at a time.
  std::vector<std::unique_ptr<const Ready>> owned;
  std::vector<std::atomic<const Ready*>> made;
  /// Bytes of what these hold, about.
  int64_t pointers = 0;

 private:
  void list_subnetworks();
};

}  // namespace nsn::runtime
