#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/files.h"

// The safetensors format: eight bytes of header length (little endian), a JSON header that gives
// each tensor's dtype, shape and byte range, then the tensors' bytes without holes.

namespace nsn::safetensors {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// Writes atomically, as detail::NewFile.
void write(const std::string& path, const NamedTensors& tensors,
           const std::map<std::string, std::string>& metadata);

/// What the header says of one tensor. Bytes count from the end of the header.
struct Entry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin, end;
};

/// A file open for reading, its header read and checked: each entry's range fits its shape and
/// dtype, and the ranges follow each other without holes. The file may be cut behind the header.
class File {
 public:
  explicit File(std::string path);

  const std::string& path() const { return path_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// In the order of their bytes.
  const std::vector<Entry>& entries() const { return entries_; }

  /// How many bytes of tensors the header describes, and how many there are: at most as many.
  uint64_t described_bytes() const { return entries_.empty() ? 0 : entries_.back().end; }
  uint64_t data_bytes() const { return data_bytes_; }

  /// Fills `to` with `size` bytes of the tensors from byte `begin` on. Reads and does not map: of a
  /// file that somebody shortens meanwhile, reading is an error and touching a map is a signal.
  void read(uint64_t begin, void* to, uint64_t size);

  /// How many bytes were read so far, the header's among them.
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  void read_header();
  void read_at(uint64_t place, void* to, uint64_t size);

  std::string path_;
  detail::Descriptor descriptor_;
  std::map<std::string, std::string> metadata_;
  std::vector<Entry> entries_;
  uint64_t data_begin_ = 0, data_bytes_ = 0, bytes_read_ = 0;
};

}  // namespace nsn::safetensors
