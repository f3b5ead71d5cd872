#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nsn::runtime {

/// A file, mapped read-only, whose later part may be appended later on: addresses are kept for it.
class MappedFile {
 public:
  /// Throws Error.
  explicit MappedFile(std::string path);
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  /// What is there of it by now.
  std::string_view bytes() const { return {data_, static_cast<size_t>(size_)}; }
  const char* data() const { return data_; }
  int64_t size() const { return size_; }

  /// Maps as many bytes as the file will have, of which those that are there may be read.
  void reserve(int64_t size);

  /// Looks how long the file is. Throws Error where it is shorter than before.
  void look();

 private:
  std::string path_;
  int file_ = -1;
  const char* data_ = nullptr;
  int64_t size_ = 0, mapped_ = 0;
};

}  // namespace nsn::runtime
