#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "checkpoint/safetensors.h"

// Tensors of which parts are read, and which take memory for no more than these.

namespace nsn::safetensors {

/// Tensors of the entries' shapes in one reservation of addresses, which lasts as long as one of
/// them; in the order of the file, so that what is loaded together lies together. What was not
/// written to reads as zeros and takes no memory.
std::vector<at::Tensor> reserve(const File& file, const std::vector<const Entry*>& entries);

/// Reads runs of one tensor into their places, and those that lie close together at once.
class RunReader {
 public:
  RunReader(File& file, const Entry& entry, char* to) : file_(file), entry_(entry), to_(to) {}

  /// Bytes of the tensor; each run lies behind the one before.
  void add(uint64_t begin, uint64_t end);
  void finish();

 private:
  File& file_;
  const Entry& entry_;
  char* to_;
  std::vector<std::pair<uint64_t, uint64_t>> runs_;
  std::vector<char> buffer_;
};

}  // namespace nsn::safetensors
