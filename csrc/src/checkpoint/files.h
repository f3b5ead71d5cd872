#pragma once

#include <cstdint>
#include <string>

#include "nsn/values/error.h"
#include "nsn/visibility.h"

// Files as the library reads and writes them; the one place that decides what a path may name, and
// how what is new takes the place of what is old. The Python package writes its files by it too.

namespace nsn::detail {

/// Throws FileError for the call that just failed (by errno): what could not be done, why, remedy.
[[noreturn]] void refuse_file(const std::string& path, const std::string& action);

/// Closes itself.
class NSN_API Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  ~Descriptor() { close(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor(Descriptor&& other) noexcept : number_(other.number_) { other.number_ = -1; }
  Descriptor& operator=(Descriptor&& other) noexcept;

  int number() const { return number_; }
  bool is_open() const { return number_ >= 0; }
  void close();
  /// Leaves the closing to the caller.
  int release();

 private:
  int number_;
};

/// Opens a regular file for reading, and never waits: a FIFO, a device or a folder is refused.
/// `action` is what a message says could not be done where there is none.
NSN_API Descriptor open_for_reading(const std::string& path, const std::string& action = "open");

/// A file that gets its name when it is whole: `path` holds what it held, or all that is new. Where
/// the system can (O_TMPFILE), it has no name until then, so that nothing is left of a process that
/// ends before; elsewhere, and for an instant where it replaces another, it is `.nsn-*.tmp` beside
/// it, and the next one that is made there removes those whose process is gone.
///
/// A symbolic link is followed; the mode, and where the system lets it the owner, of the file that
/// it replaces stay. Refused are: what is no regular file, one that may not be written, one with
/// other names (hard links, which would keep the old contents). Throws FileError, and
/// c10::ValueError for a path that no file can have.
class NSN_API NewFile {
 public:
  explicit NewFile(const std::string& path);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(const void* data, uint64_t size);

  /// Flushes to the disk, gives the file its name, and flushes its folder. Without it, nothing has
  /// been.
  void commit();

 private:
  std::string path_;    // as the caller gave it, for messages
  std::string target_;  // with links followed
  std::string temporary_;
  Descriptor file_;

  /// Opens a new file in the folder that others can see.
  void open_named(const std::string& folder);
  void discard();
};

/// The same for a folder, which replaces nothing: `path` must not exist.
class NSN_API NewFolder {
 public:
  explicit NewFolder(const std::string& path);
  ~NewFolder();
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  /// Where to put what is to be in it.
  const std::string& place() const { return temporary_; }
  void commit();
  void discard();

 private:
  std::string path_;
  std::string temporary_;
  Descriptor lock_;
};

/// Bytes of memory, swap included, that the machine, or the group of processes, may use at most.
uint64_t most_memory();

}  // namespace nsn::detail
