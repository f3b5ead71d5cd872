#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

// The safetensors format: eight bytes of header length (little endian), a JSON header that gives
// each tensor's dtype, shape and byte range, then the tensors' bytes without holes.

namespace nsn::safetensors {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

struct File {
  NamedTensors tensors;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
};

/// Writes atomically: a temporary file beside `path`, flushed to the disk, then renamed.
void write(const std::string& path, const NamedTensors& tensors,
           const std::map<std::string, std::string>& metadata);

/// Reads and checks a whole file.
File read(const std::string& path);

}  // namespace nsn::safetensors
