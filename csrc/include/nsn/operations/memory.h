#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

namespace nsn {

/// Memory that outlives a pass; what a Core keeps of it is its own business.
class Workspace;

namespace functional {

/// Elements that are wanted behind results, in the same buffer; whoever lays the results says where
/// they are.
struct Room {
  int64_t numel = 0;
  /// Flat. Undefined where nobody made room.
  at::Tensor behind = {};
};

/// Where an operation lays its results.
struct Memory {
  /// What buffers are taken from. Default: none, torch's allocator.
  std::shared_ptr<Workspace> workspace;
  /// A wish, which lasts as long as the call. Default: none.
  Room* room = nullptr;
};

}  // namespace functional
}  // namespace nsn
