#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/panels.h"
#include "nsn/runtime/model.h"
#include "plan/run.h"
#include "runtime/file.h"
#include "runtime/mapped_file.h"

namespace nsn::runtime {

struct Model::State {
  /// Throws Error.
  explicit State(const std::string& path);

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
  /// Makes those ready whose weights are there by now.
  void make_ready();

  std::string path;
  MappedFile mapped;
  File file;
  std::vector<Subnetwork> subnetworks;
  /// Of each sub-network what is ready; set once, by one thread at a time.
  std::vector<std::unique_ptr<const Ready>> owned;
  std::vector<std::atomic<const Ready*>> made;
  /// Bytes of what these hold, about.
  int64_t pointers = 0;
};

}  // namespace nsn::runtime
