#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "nsn/operations/memory.h"

// Memory that outlives a pass. A training step frees all its intermediate results and gradients
// only for the next one to ask for the same sizes again; handed back to the system in between, each
// of their pages costs a fault (a tenth of a step of the paper's network).

namespace nsn {

/// Keeps the blocks of memory that tensors made here have freed, for tensors of the same size. The
/// memory of a tensor returns when its last user drops it, from any thread, and after the workspace
/// is gone goes to the system. What was not used again for a whole pass is freed.
class Workspace : public std::enable_shared_from_this<Workspace> {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  /// A pass begins: frees the blocks that lay idle during the last one.
  void begin_pass();

  /// An uninitialised, contiguous tensor, and behind it the room that is wanted. Off the CPU
  /// at::empty's, without room.
  at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options,
                   functional::Room* room = nullptr);

  /// Bytes that lie idle.
  size_t idle_bytes() const;

 private:
  struct Idle {
    c10::DataPtr memory;
    size_t bytes;
    uint64_t freed_in;  // pass
  };
  struct Lease;

  void take_back(c10::DataPtr memory, size_t bytes);

  mutable std::mutex mutex_;
  std::vector<Idle> idle_;
  uint64_t pass_ = 0;
};

namespace detail {

/// What `memory` asks for: `Workspace::empty`, or at::empty where there is no workspace.
at::Tensor empty_in(const functional::Memory& memory, at::IntArrayRef sizes,
                    const at::TensorOptions& options);

}  // namespace detail
}  // namespace nsn
