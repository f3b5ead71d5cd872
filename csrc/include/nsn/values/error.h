#pragma once

#include <c10/util/Exception.h>

#include <string>

#include <nsn/visibility.h>

// What nsn throws: c10::ValueError (a value is wrong), c10::TypeError (a kind is wrong), FileError
// (the system refused a file) and c10::Error for the rest. Each message states the rule, what was
// found and the remedy. Python sees ValueError, TypeError, OSError and RuntimeError.

namespace nsn {

/// The system refused to open, read, write or rename a file. `code` is its errno.
class NSN_API FileError : public c10::Error {
 public:
  FileError(int code, std::string path, const std::string& message);

  int code() const noexcept { return code_; }
  const std::string& path() const noexcept { return path_; }

 private:
  int code_;
  std::string path_;
};

}  // namespace nsn
