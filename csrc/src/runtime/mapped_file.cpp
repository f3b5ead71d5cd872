#include "runtime/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "nsn/runtime/model.h"

namespace nsn::runtime {

namespace {

[[noreturn]] void refuse(const std::string& path, const char* what) {
  const int code = errno;
  throw Error("nsn: '" + path + "' cannot be " + what + ": " + std::strerror(code) +
              (code == ENOMEM ? ". Free memory, or give another file."
                              : ". Check the path and its permissions."));
}

int64_t size_of(int file, const std::string& path) {
  struct stat found{};
  if (::fstat(file, &found) != 0) refuse(path, "read");
  if (!S_ISREG(found.st_mode)) {
    throw Error("nsn: '" + path + "' is no regular file, but a " +
                (S_ISDIR(found.st_mode) ? "folder" : "pipe or device") +
                ". Give the path of a file.");
  }
  return found.st_size;
}

}  // namespace

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  if (path_.find('\0') != std::string::npos) {
    throw Error(
        "nsn: the path '" + path_.substr(0, path_.find('\0')) +
        "' goes on behind a NUL byte, where the system would end it. Give the path of a file.");
  }
  // Not waiting for the other end, should it be a pipe.
  file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file_ < 0) refuse(path_, "opened");
  try {
    size_ = size_of(file_, path_);
    reserve(size_);
  } catch (...) {
    ::close(file_);
    throw;
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<char*>(data_), static_cast<size_t>(mapped_));
  ::close(file_);
}

void MappedFile::reserve(int64_t size) {
  if (size <= mapped_) return;
  // Where addresses have 32 bits.
  if (size > PTRDIFF_MAX) {
    errno = ENOMEM;
    refuse(path_, "mapped");
  }
  void* made = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_SHARED, file_, 0);
  if (made == MAP_FAILED) refuse(path_, "mapped");
  if (data_ != nullptr) ::munmap(const_cast<char*>(data_), static_cast<size_t>(mapped_));
  data_ = static_cast<const char*>(made);
  mapped_ = size;
}

void MappedFile::look() {
  const int64_t size = size_of(file_, path_);
  if (size < size_) {
    throw Error(
        "nsn: '" + path_ + "' had " + std::to_string(size_) + " bytes, and has " +
        std::to_string(size) +
        " now. A file in use may be appended to, and otherwise must stay as it is. Open it anew.");
  }
#if defined(__EMSCRIPTEN__)
  // A mapping is a copy there, which does not see what has been appended.
  const int64_t end = std::min(size, mapped_);
  for (int64_t at = size_; at < end;) {
    const ssize_t got =
        ::pread(file_, const_cast<char*>(data_) + at, static_cast<size_t>(end - at), at);
    if (got <= 0) refuse(path_, "read");
    at += got;
  }
#endif
  size_ = size;
}

}  // namespace nsn::runtime
