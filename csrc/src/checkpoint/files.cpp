#include "checkpoint/files.h"

#include <c10/util/Exception.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string_view>
#include <system_error>
#include <utility>

namespace nsn {

FileError::FileError(int code, std::string path, const std::string& message)
    : c10::Error({__func__, __FILE__, __LINE__}, message), code_(code), path_(std::move(path)) {}

}  // namespace nsn

namespace nsn::detail {

namespace {

constexpr std::string_view kPrefix = ".nsn-", kSuffix = ".tmp";
constexpr int kMostLinks = 40;  // as Linux

void check_path(const std::string& path) {
  const size_t end = path.find('\0');
  TORCH_CHECK_VALUE(end == std::string::npos, "nsn: the path of a file has no NUL byte, but '",
                    path.substr(0, end), "' goes on behind one. Leave it out.");
}

[[noreturn]] void refuse_as(int code, const std::string& path, const std::string& action,
                            const std::string& why_and_remedy) {
  throw FileError(code, path, "nsn: cannot " + action + " '" + path + "': " + why_and_remedy);
}

/// Refuses what is no regular file.
void check_kind(const struct stat& status, const std::string& path, const std::string& action) {
  if (S_ISREG(status.st_mode)) return;
  if (S_ISDIR(status.st_mode)) {
    errno = EISDIR;
    refuse_file(path, action);
  }
  const char* kind = S_ISFIFO(status.st_mode)                             ? "FIFO"
                     : S_ISSOCK(status.st_mode)                           ? "socket"
                     : S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode) ? "device"
                                                                          : "special file";
  refuse_as(EINVAL, path, action,
            std::string("it is a ") + kind + ", and must be a regular file. Give another path.");
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

/// Where a link that leads to nothing leads to; else the path itself.
std::string behind_links(const std::string& given) {
  std::string path = given;
  std::array<char, PATH_MAX> to{};
  for (int links = 0; links <= kMostLinks; ++links) {
    const ssize_t size = ::readlink(path.c_str(), to.data(), to.size());
    if (size < 0) return path;
    const std::string next(to.data(), static_cast<size_t>(size));
    path = !next.empty() && next.front() == '/' ? next : folder_of(path) + "/" + next;
  }
  errno = ELOOP;
  refuse_file(given, "write");
}

std::string random_name() {
  std::random_device source;
  std::array<char, 17> digits{};
  std::snprintf(digits.data(), digits.size(), "%08x%08x", source(), source());
  return std::string(kPrefix) + digits.data() + std::string(kSuffix);
}

bool is_temporary(std::string_view name) {
  return name.size() == kPrefix.size() + 16 + kSuffix.size() && name.starts_with(kPrefix) &&
         name.ends_with(kSuffix);
}

bool lock(int descriptor) { return ::flock(descriptor, LOCK_EX | LOCK_NB) == 0; }

/// Removes what processes that are gone left in a folder: temporary files and folders that nobody
/// has locked. What cannot be removed stays.
void clean(const std::string& folder) {
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(folder.c_str()), &::closedir);
  if (!entries) return;
  while (const dirent* entry = ::readdir(entries.get())) {
    if (!is_temporary(entry->d_name)) continue;
    const std::string path = folder + "/" + entry->d_name;
    const Descriptor left(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC));
    if (!left.is_open() || !lock(left.number())) continue;
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
}

/// So that a new name outlives a failure of power. Some file systems cannot.
void flush_folder(const std::string& folder) {
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.is_open()) static_cast<void>(::fsync(descriptor.number()));
}

std::string name_of_descriptor(int number) { return "/proc/self/fd/" + std::to_string(number); }

}  // namespace

void refuse_file(const std::string& path, const std::string& action) {
  const int code = errno;
  const char* remedy = code == ENOSPC || code == EDQUOT
                           ? ". Make room on the disk, or give another path."
                           : ". Check the path and its permissions.";
  refuse_as(code, path, action, std::strerror(code) + std::string(remedy));
}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

void Descriptor::close() {
  if (number_ >= 0) ::close(number_);
  number_ = -1;
}

int Descriptor::release() { return std::exchange(number_, -1); }

Descriptor open_for_reading(const std::string& path, const std::string& action) {
  check_path(path);
  struct stat status{};
  // Twice: to open some devices is to act on them, and what was asked for may be another by then.
  if (::stat(path.c_str(), &status) != 0) refuse_file(path, action);
  check_kind(status, path, "read");
  Descriptor result(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  if (!result.is_open()) refuse_file(path, action);
  if (::fstat(result.number(), &status) != 0) refuse_file(path, "read");
  check_kind(status, path, "read");
  return result;
}

// -------------------------------------------------------------------------------------------------

namespace {

/// Refuses a file that is there already, where replacing it would not do what is asked for.
void check_replaceable(const struct stat& old, const std::string& path) {
  check_kind(old, path, "write");
  // Root may write it all the same; whoever took the right away meant it.
  if ((old.st_mode & 0222) == 0 || ::access(path.c_str(), W_OK) != 0) {
    errno = EACCES;
    refuse_file(path, "write");
  }
  if (old.st_nlink > 1) {
    refuse_as(EINVAL, path, "write",
              "the file has " + std::to_string(old.st_nlink) +
                  " names (hard links), and the others would keep the old contents. Remove this "
                  "one first, or give another path.");
  }
}

/// The file that a path means, with links followed.
std::string target_of(const std::string& path, bool exists) {
  if (exists) {
    const std::unique_ptr<char, void (*)(void*)> real(::realpath(path.c_str(), nullptr),
                                                      &std::free);
    if (!real) refuse_file(path, "write");
    return real.get();
  }
  if (errno != ENOENT) refuse_file(path, "write");
  if (path.ends_with('/')) {
    errno = EISDIR;
    refuse_file(path, "write");
  }
  return behind_links(path);
}

/// A locked file without a name, where the system has such files and can name them later.
Descriptor open_nameless(const std::string& folder) {
  Descriptor file(::open(folder.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666));
  if (file.is_open() &&
      (::access(name_of_descriptor(file.number()).c_str(), F_OK) != 0 || !lock(file.number()))) {
    file.close();
  }
  return file;
}

/// Gives a new file the mode, and where the system lets it the owner, of the one that it replaces.
/// False, with errno, where it cannot.
bool take_rights(int file, const struct stat& old) {
  struct stat status{};
  const bool is_mine =
      ::fstat(file, &status) == 0 && status.st_uid == old.st_uid && status.st_gid == old.st_gid;
  mode_t mode = old.st_mode & 07777;
  // Whom the group's rights were not meant for does not get them.
  if (!is_mine && ::fchown(file, old.st_uid, old.st_gid) != 0) mode &= 0707;
  return ::fchmod(file, mode) == 0;
}

}  // namespace

NewFile::NewFile(const std::string& path) : path_(path) {
  check_path(path);
  struct stat old{};
  const bool exists = ::stat(path.c_str(), &old) == 0;
  if (exists) check_replaceable(old, path);
  target_ = target_of(path, exists);
  const std::string folder = folder_of(target_);
  clean(folder);
  file_ = open_nameless(folder);
  if (!file_.is_open()) open_named(folder);
  if (exists && !take_rights(file_.number(), old)) {
    const int code = errno;
    discard();
    errno = code;
    refuse_file(path, "write");
  }
}

void NewFile::open_named(const std::string& folder) {
  while (!file_.is_open()) {
    const std::string name = folder + "/" + random_name();
    file_ = Descriptor(::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    if (!file_.is_open()) {
      if (errno == EEXIST) continue;
      refuse_file(path_, "write");
    }
    // Between the two calls another may have cleaned it away.
    struct stat status{};
    if (!lock(file_.number()) || ::fstat(file_.number(), &status) != 0 || status.st_nlink == 0) {
      file_.close();
      continue;
    }
    temporary_ = name;
  }
}

NewFile::~NewFile() { discard(); }

void NewFile::write(const void* data, uint64_t size) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(file_.number(), next, size);
    if (written < 0) {
      if (errno == EINTR) continue;
      refuse_file(path_, "write");
    }
    next += written;
    size -= static_cast<uint64_t>(written);
  }
}

void NewFile::commit() {
  if (::fsync(file_.number()) != 0) refuse_file(path_, "write");
  const std::string folder = folder_of(target_);
  bool is_named = false;
  while (temporary_.empty() && !is_named) {
    const std::string self = name_of_descriptor(file_.number());
    const auto link_to = [&](const std::string& name) {
      return ::linkat(AT_FDCWD, self.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) == 0;
    };
    is_named = link_to(target_);
    if (is_named) break;
    if (errno != EEXIST) refuse_file(path_, "write");
    const std::string name = folder + "/" + random_name();
    if (link_to(name)) {
      temporary_ = name;
    } else if (errno != EEXIST) {
      refuse_file(path_, "write");
    }
  }
  if (!is_named && ::rename(temporary_.c_str(), target_.c_str()) != 0) {
    refuse_file(path_, "write");
  }
  temporary_.clear();
  file_.close();
  flush_folder(folder);
}

void NewFile::discard() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
  file_.close();
}

// -------------------------------------------------------------------------------------------------

NewFolder::NewFolder(const std::string& path) : path_(path) {
  check_path(path);
  while (path_.size() > 1 && path_.ends_with('/')) path_.pop_back();
  struct stat status{};
  if (::lstat(path_.c_str(), &status) == 0) {
    throw FileError(EEXIST, path,
                    "nsn: '" + path + "' exists already. Remove it, or give another path.");
  }
  if (errno != ENOENT) refuse_file(path, "make the folder");
  const std::string parent = folder_of(path_);
  clean(parent);
  while (!lock_.is_open()) {
    temporary_ = parent + "/" + random_name();
    if (::mkdir(temporary_.c_str(), 0777) != 0) {
      if (errno == EEXIST) continue;
      refuse_file(path, "make the folder");
    }
    lock_ = Descriptor(::open(temporary_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (lock_.is_open() && (!lock(lock_.number()) || ::lstat(temporary_.c_str(), &status) != 0)) {
      lock_.close();
    }
  }
}

NewFolder::~NewFolder() { discard(); }

void NewFolder::commit() {
  // All that was put in it, whoever wrote it.
  if (::syncfs(lock_.number()) != 0) refuse_file(path_, "write");
  // Where a file system knows no flags of renameat2, it is rename, which takes an empty folder's
  // place at most.
  if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE) != 0 &&
      ((errno != EINVAL && errno != ENOSYS) || ::rename(temporary_.c_str(), path_.c_str()) != 0)) {
    refuse_file(path_, "make the folder");
  }
  temporary_.clear();
  lock_.close();
  flush_folder(folder_of(path_));
}

void NewFolder::discard() {
  if (!temporary_.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(temporary_, ignored);
  }
  temporary_.clear();
  lock_.close();
}

// -------------------------------------------------------------------------------------------------

uint64_t most_memory() {
  struct sysinfo machine{};
  uint64_t result = ~uint64_t{0};
  if (::sysinfo(&machine) == 0) {
    result = (machine.totalram + machine.totalswap) * uint64_t{machine.mem_unit};
  }
  // As a container sees its own group, of version 2 and 1. "max" leaves `limit` as it is.
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    uint64_t limit = 0;
    if (std::ifstream(path) >> limit) result = std::min(result, limit);
  }
  return result;
}

}  // namespace nsn::detail
