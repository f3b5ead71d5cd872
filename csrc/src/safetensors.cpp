#include "safetensors.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "json.h"
#include "nsn/error.h"

namespace nsn {

FileError::FileError(int code, std::string path, const std::string& message)
    : c10::Error({__func__, __FILE__, __LINE__}, message), code_(code), path_(std::move(path)) {}

}  // namespace nsn

namespace nsn::safetensors {

namespace {

using detail::Json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMostHeaderBytes = 100'000'000;  // the format's own limit
constexpr int kMostDepth = 8;

struct DtypeName {
  const char* name;
  at::ScalarType dtype;
};
constexpr std::array<DtypeName, 9> kDtypes = {{{"F64", at::kDouble},
                                               {"F32", at::kFloat},
                                               {"F16", at::kHalf},
                                               {"BF16", at::kBFloat16},
                                               {"I64", at::kLong},
                                               {"I32", at::kInt},
                                               {"I16", at::kShort},
                                               {"I8", at::kChar},
                                               {"U8", at::kByte}}};

/// The rule, what the system said, and the remedy, for one failed call.
[[noreturn]] void refuse(const std::string& path, const std::string& action) {
  const int code = errno;
  throw FileError(code, path,
                  "nsn: cannot " + action + " '" + path + "': " + std::strerror(code) +
                      ". Check the path and its permissions.");
}

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

void write_all(int descriptor, const void* data, uint64_t size, const std::string& path) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(descriptor, next, size);
    if (written < 0) {
      if (errno == EINTR) continue;
      refuse(path, "write");
    }
    next += written;
    size -= static_cast<uint64_t>(written);
  }
}

void read_all(int descriptor, void* data, uint64_t size, const std::string& path) {
  char* next = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = ::read(descriptor, next, size);
    if (got < 0) {
      if (errno == EINTR) continue;
      refuse(path, "read");
    }
    TORCH_CHECK_VALUE(got > 0, "nsn: '", path,
                      "' became shorter while it was read. Read it again "
                      "when nobody writes it.");
    next += got;
    size -= static_cast<uint64_t>(got);
  }
}

std::string header_of(const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata) {
  Json header;
  header["__metadata__"] = metadata;
  uint64_t begin = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto dtype = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeName& each) {
      return each.dtype == tensor.scalar_type();
    });
    TORCH_CHECK_VALUE(dtype != kDtypes.end(), "nsn: tensor '", name, "' has dtype ",
                      tensor.scalar_type(),
                      ", which a checkpoint cannot hold. Convert it, for "
                      "example to float32.");
    const uint64_t end = begin + tensor.nbytes();
    header[name] = {
        {"dtype", dtype->name}, {"shape", tensor.sizes().vec()}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false,
                      "nsn: names and metadata of a checkpoint must be UTF-8: ", error.what(),
                      ". Encode them.");
  }
  text.append((8 - text.size() % 8) % 8, ' ');  // tensors start aligned
  return text;
}

struct Entry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin, end;
};

Entry parse_entry(const std::string& name, const Json& json, const std::string& path) {
  const auto check = [&](bool fits, const auto&... what) {
    TORCH_CHECK_VALUE(fits, "nsn: '", path, "': tensor '", name, "' ", what...,
                      ". The file is damaged or foreign; save it again.");
  };
  const auto is_natural = [](const Json& value) { return value.is_number_unsigned(); };
  check(json.is_object() && json.size() == 3 && json.contains("dtype") && json.contains("shape") &&
            json.contains("data_offsets"),
        "must have the fields dtype, shape and data_offsets");
  const Json &dtype = json["dtype"], &shape = json["shape"], &offsets = json["data_offsets"];
  check(dtype.is_string(), "has a dtype that is no string");
  const auto known = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const DtypeName& each) {
    return dtype.get<std::string>() == each.name;
  });
  check(known != kDtypes.end(), "has the unknown dtype ", dtype.dump());
  check(shape.is_array() && std::all_of(shape.begin(), shape.end(), is_natural),
        "has a shape that is no array of naturals");
  check(
      offsets.is_array() && offsets.size() == 2 && is_natural(offsets[0]) && is_natural(offsets[1]),
      "has data_offsets that are no pair of naturals");

  Entry entry{name, known->dtype, {}, offsets[0].get<uint64_t>(), offsets[1].get<uint64_t>()};
  uint64_t bytes = c10::elementSize(entry.dtype);
  // What strides grow to: as bytes, but with zeros for ones.
  int64_t most = 1;
  for (const Json& extent : shape) {
    const auto value = extent.get<uint64_t>();
    check(!__builtin_mul_overflow(bytes, value, &bytes) &&
              !__builtin_mul_overflow(most, std::max(value, uint64_t{1}), &most),
          "has the shape ", shape.dump(), ", which no memory holds");
    entry.shape.push_back(static_cast<int64_t>(value));
  }
  check(entry.begin <= entry.end && entry.end - entry.begin == bytes, "of shape ", shape.dump(),
        " and dtype ", known->name, " takes ", bytes, " bytes, but its data_offsets are ",
        offsets.dump());
  return entry;
}

}  // namespace

void write(const std::string& path, const NamedTensors& tensors,
           const std::map<std::string, std::string>& metadata) {
  const std::string header = header_of(tensors, metadata);
  // Beside the target, since only a rename within one file system is atomic; a name of its own for
  // each call, since several threads or processes may save to one path.
  static std::atomic<uint64_t> calls{0};
  const std::string temporary =
      path + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(calls++);
  const Descriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (file.number() < 0) refuse(path, "write");
  try {
    std::array<unsigned char, kLengthBytes> length{};
    for (const size_t i : c10::irange(kLengthBytes)) {
      length[i] = static_cast<unsigned char>((header.size() >> (8 * i)) & 0xFFU);
    }
    write_all(file.number(), length.data(), kLengthBytes, path);
    write_all(file.number(), header.data(), header.size(), path);
    for (const auto& [name, tensor] : tensors) {
      static_cast<void>(name);
      const at::Tensor bytes = tensor.detach().cpu().contiguous();
      write_all(file.number(), bytes.const_data_ptr(), bytes.nbytes(), path);
    }
    if (::fsync(file.number()) != 0) refuse(path, "write");
    if (::rename(temporary.c_str(), path.c_str()) != 0) refuse(path, "write");
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

File read(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.number() < 0) refuse(path, "open");
  struct stat status{};
  if (::fstat(file.number(), &status) != 0) refuse(path, "read");
  if (S_ISDIR(status.st_mode)) {
    errno = EISDIR;
    refuse(path, "read");
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  TORCH_CHECK_VALUE(size >= kLengthBytes, "nsn: '", path, "' has ", size,
                    " bytes, but a safetensors file has at least 8. It is truncated or foreign.");
  std::array<unsigned char, kLengthBytes> length{};
  read_all(file.number(), length.data(), kLengthBytes, path);
  uint64_t header_bytes = 0;
  for (const size_t i : c10::irange(kLengthBytes)) {
    header_bytes |= static_cast<uint64_t>(length[i]) << (8 * i);
  }
  TORCH_CHECK_VALUE(header_bytes <= kMostHeaderBytes && header_bytes <= size - kLengthBytes,
                    "nsn: '", path, "' is no complete safetensors file: it announces a header of ",
                    header_bytes, " bytes and has ", size - kLengthBytes,
                    " after the announcement. It is truncated or foreign.");
  std::string text(header_bytes, '\0');
  read_all(file.number(), text.data(), header_bytes, path);

  std::string problem;
  const Json header = detail::parse_json(text, kMostDepth, problem);
  if (problem.empty() && !header.is_object()) problem = "is no JSON object";
  TORCH_CHECK_VALUE(problem.empty(), "nsn: '", path, "' is no safetensors file: its header ",
                    problem, ". Save the network with nsn::save.");
  File result;
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name != "__metadata__") {
      entries.push_back(parse_entry(name, value, path));
      continue;
    }
    TORCH_CHECK_VALUE(value.is_object(), "nsn: '", path, "': __metadata__ must be an object.");
    for (const auto& [key, entry] : value.items()) {
      TORCH_CHECK_VALUE(entry.is_string(), "nsn: '", path, "': the metadata '", key,
                        "' must be a string.");
      result.metadata.emplace(key, entry.get<std::string>());
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  // All ranges are checked before anything is allocated.
  const uint64_t data_bytes = size - kLengthBytes - header_bytes;
  uint64_t next = 0;
  for (const Entry& entry : entries) {
    TORCH_CHECK_VALUE(entry.begin == next, "nsn: '", path, "': tensor '", entry.name,
                      "' starts at byte ", entry.begin, ", but the one before it ends at ", next,
                      ". The file is damaged; save it again.");
    next = entry.end;
  }
  TORCH_CHECK_VALUE(next == data_bytes, "nsn: '", path, "': the header describes ", next,
                    " bytes of tensors, but the file has ", data_bytes,
                    ". It is truncated or damaged; save it again.");
  for (const Entry& entry : entries) {
    at::Tensor tensor = at::empty(entry.shape, at::TensorOptions().dtype(entry.dtype));
    read_all(file.number(), tensor.mutable_data_ptr(), entry.end - entry.begin, path);
    result.tensors.emplace_back(entry.name, std::move(tensor));
  }
  return result;
}

}  // namespace nsn::safetensors
