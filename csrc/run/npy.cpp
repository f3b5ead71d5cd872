#include "npy.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <system_error>

namespace nsn::run {

namespace {

constexpr std::string_view kMagic{"\x93NUMPY", 6};

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
  throw std::runtime_error("'" + path + "' " + what);
}

[[noreturn]] void refuse_header(const std::string& path, const std::string& what) {
  refuse(path, "is no .npy that can be read: " + what + ". Save it anew with numpy.save.");
}

/// By its name, however that is written.
bool is_npy(const std::string& path) {
  constexpr std::string_view kEnd = ".npy";
  return path.size() > kEnd.size() &&
         std::equal(kEnd.begin(), kEnd.end(), path.end() - kEnd.size(),
                    [](char a, char b) { return a == b || a == b + ('a' - 'A'); });
}

std::vector<char> contents_of(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             &std::fclose);
  const auto fail = [&] {
    refuse(path, std::string("cannot be read: ") + std::strerror(errno) +
                     ". Check the path and its permissions.");
  };
  if (file == nullptr) fail();
  std::vector<char> result;
  size_t size = 0;
  do {
    result.resize(std::max<size_t>(1 << 16, 2 * size));
    size += std::fread(result.data() + size, 1, result.size() - size, file.get());
  } while (size == result.size());
  if (std::ferror(file.get()) != 0) fail();
  result.resize(size);
  return result;
}

/// What stands behind a key of the header, {'descr': '<f4', ...}.
std::string_view behind(std::string_view header, const std::string& key, const std::string& path) {
  const std::string quoted = "'" + key + "':";
  const size_t at = header.find(quoted);
  if (at == std::string_view::npos) refuse_header(path, "its header has no '" + key + "'");
  header.remove_prefix(at + quoted.size());
  header.remove_prefix(std::min(header.find_first_not_of(' '), header.size()));
  return header;
}

/// "(5, 784)"
std::vector<int64_t> shape_of(std::string_view text, const std::string& path) {
  const std::string whole(text.substr(0, text.find(')')));
  const auto take = [&](char what) {
    text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
    const bool is_there = !text.empty() && text.front() == what;
    if (is_there) text.remove_prefix(1);
    return is_there;
  };
  std::vector<int64_t> result;
  bool is_good = take('(');
  while (is_good && !take(')')) {
    int64_t extent = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), extent);
    is_good = error == std::errc() && extent >= 0;
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    result.push_back(extent);
    if (is_good && !take(',')) {
      is_good = take(')');
      break;
    }
  }
  if (!is_good) refuse_header(path, "its header has the shape '" + whole + "'");
  return result;
}

/// Bytes of so many elements; -1 where they are more than can be counted.
int64_t bytes_of(const std::vector<int64_t>& shape, int64_t each) {
  int64_t result = each;
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(result, extent, &result)) return -1;
  }
  return result;
}

}  // namespace

Array read_array(const std::string& path) {
  Array result;
  result.bytes = contents_of(path);
  const std::string_view all(result.bytes.data(), result.bytes.size());
  result.is_npy = all.substr(0, kMagic.size()) == kMagic;
  if (!result.is_npy) {
    if (is_npy(path)) refuse_header(path, "its first bytes are others");
    return result;
  }
  // A version, of two bytes, and how long the header is.
  constexpr size_t kLengthAt = kMagic.size() + 2;
  const int version = all.size() < kLengthAt ? 1 : all[kMagic.size()];
  if (version < 1 || version > 3) {
    refuse_header(path, "it has version " + std::to_string(version) + ", but 1 to 3 are known");
  }
  const size_t begin = kLengthAt + (version == 1 ? 2 : 4);
  size_t length = 0;
  for (size_t i = begin; i-- > kLengthAt && begin <= all.size();) {
    length = length << 8U | static_cast<unsigned char>(all[i]);
  }
  if (begin > all.size() || length > all.size() - begin) {
    refuse_header(path, "it ends in its header, after " + std::to_string(all.size()) + " bytes");
  }
  const std::string_view header = all.substr(begin, length), data = all.substr(begin + length);
  const std::string_view type = behind(header, "descr", path);
  const auto is_of = [&](std::string_view name) { return type.substr(0, name.size()) == name; };
  result.is_integral = is_of("'<i8'");
  if (!result.is_integral && !is_of("'<f4'")) {
    refuse(path, "holds " + std::string(type.substr(0, type.find(','))) +
                     ", and must hold '<f4' or '<i8': save it as float32 or int64");
  }
  if (behind(header, "fortran_order", path).substr(0, 5) != "False") {
    refuse(path, "lies in Fortran's order: save a C-contiguous array");
  }
  result.shape = shape_of(behind(header, "shape", path), path);
  const int64_t bytes = bytes_of(result.shape, result.is_integral ? 8 : 4);
  if (bytes != static_cast<int64_t>(data.size())) {
    refuse_header(path, "its header names " +
                            (bytes < 0 ? "more than 2^63" : std::to_string(bytes)) +
                            " bytes of numbers, but it holds " + std::to_string(data.size()));
  }
  result.bytes.erase(result.bytes.begin(),
                     result.bytes.begin() + static_cast<std::ptrdiff_t>(begin + length));
  return result;
}

namespace {

/// What stands in front of the numbers in a .npy.
std::string header_for(const std::vector<int64_t>& shape) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (const int64_t extent : shape) header += std::to_string(extent) + ", ";
  header += "), }";
  header.resize((kMagic.size() + 4 + header.size() + 64) / 64 * 64 - kMagic.size() - 5, ' ');
  header += '\n';
  const char sizes[] = {1, 0, static_cast<char>(header.size() & 255U),
                        static_cast<char>(header.size() >> 8U)};
  return std::string(kMagic) + std::string(sizes, sizeof sizes) + header;
}

/// Whether all of it was written.
bool write_to(std::FILE* file, const std::string& header, const std::vector<float>& numbers) {
  if (file == nullptr) return false;
  const bool is_good =
      std::fwrite(header.data(), 1, header.size(), file) == header.size() &&
      std::fwrite(numbers.data(), sizeof(float), numbers.size(), file) == numbers.size();
  const bool is_closed = std::fclose(file) == 0;
  return is_good && is_closed;
}

}  // namespace

void write_array(const std::string& path, const std::vector<int64_t>& shape,
                 const std::vector<float>& numbers) {
  namespace fs = std::filesystem;
  const std::string header = is_npy(path) ? header_for(shape) : "";
  const auto fail = [&] {
    refuse(path, std::string("cannot be written: ") + std::strerror(errno) +
                     ". Check the path, its permissions and the disk.");
  };
  std::error_code ignored;
  const fs::file_status old = fs::status(path, ignored);
  // A pipe or a device.
  if (fs::exists(old) && !fs::is_regular_file(old)) {
    if (!write_to(std::fopen(path.c_str(), "wb"), header, numbers)) fail();
    return;
  }
  // Beside it until it is whole, so that what was there stays where the disk is full. Opened once
  // as it is, which says whether it may be written.
  if (fs::exists(old)) {
    std::FILE* const there = std::fopen(path.c_str(), "r+b");
    if (there == nullptr) fail();
    std::fclose(there);
  }
  const fs::path target = fs::exists(old) ? fs::canonical(path) : fs::path(path);
  const fs::path part = target.parent_path() / (".nsn-" + std::to_string(::getpid()) + ".part");
  bool is_good = write_to(std::fopen(part.c_str(), "wb"), header, numbers);
  if (is_good && fs::exists(old)) fs::permissions(part, old.permissions(), ignored);
  is_good = is_good && std::rename(part.c_str(), target.c_str()) == 0;
  if (is_good) return;
  const int code = errno;
  std::remove(part.c_str());
  errno = code;
  fail();
}

}  // namespace nsn::run
