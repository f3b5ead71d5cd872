#include "checkpoint/safetensors.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <utility>

#include "values/json.h"

namespace nsn::safetensors {

namespace {

using detail::Json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMostHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMostDimensions = 64;
constexpr size_t kMostTensors = 250'000;

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

std::string header_of(const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata) {
  TORCH_CHECK_VALUE(tensors.size() <= kMostTensors, "nsn: a checkpoint holds at most ",
                    kMostTensors, " tensors, but there are ", tensors.size(),
                    ". Make the network of larger blocks.");
  Json header;
  header["__metadata__"] = metadata;
  uint64_t begin = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto dtype = std::find_if(
        kDtypes.begin(), kDtypes.end(),
        [own = tensor.scalar_type()](const DtypeName& each) { return each.dtype == own; });
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

/// Reads the header while it is parsed: what it becomes takes memory in proportion to it.
class HeaderReader : public detail::JsonVisitor {
 public:
  explicit HeaderReader(const std::string& path) : path_(path) {}

  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool start_object(size_t elements) override {
    static_cast<void>(elements);
    switch (place_) {
      case Place::kStart:
        place_ = Place::kHeader;
        break;
      case Place::kHeader:
        place_ = name_ == kMetadataKey ? Place::kMetadata : Place::kEntry;
        break;
      default:
        return other();
    }
    return true;
  }

  bool key(std::string& name) override {
    if (place_ == Place::kHeader) {
      name_ = std::move(name);
      if (name_ == kMetadataKey && std::exchange(has_metadata_, true)) return twice(name_);
      field_ = Field::kNone;
      draft_ = {};
    } else if (place_ == Place::kMetadata) {
      key_ = std::move(name);
      if (metadata.count(key_) > 0) return twice(key_);
    } else {
      field_ = name == "dtype"          ? Field::kDtype
               : name == "shape"        ? Field::kShape
               : name == "data_offsets" ? Field::kOffsets
                                        : Field::kNone;
      const bool is_second = (field_ == Field::kDtype && draft_.dtype != nullptr) ||
                             (field_ == Field::kShape && draft_.has_shape) ||
                             (field_ == Field::kOffsets && draft_.has_offsets);
      if (is_second) return twice(name);
      check(field_ != Field::kNone, kFields);
    }
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::kMetadata) {
      metadata.emplace(std::move(key_), std::move(value));
      return true;
    }
    if (place_ != Place::kEntry || field_ != Field::kDtype) return other();
    const auto known = std::find_if(kDtypes.begin(), kDtypes.end(),
                                    [&](const DtypeName& each) { return value == each.name; });
    check(known != kDtypes.end(), "has the unknown dtype \"", value, "\"");
    draft_.dtype = &*known;
    return true;
  }

  bool start_array(size_t elements) override {
    static_cast<void>(elements);
    if (place_ != Place::kEntry || field_ == Field::kDtype) return other();
    place_ = Place::kArray;
    (field_ == Field::kShape ? draft_.has_shape : draft_.has_offsets) = true;
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (place_ != Place::kArray) return other();
    auto& numbers = field_ == Field::kShape ? draft_.shape : draft_.offsets;
    check(field_ != Field::kShape || numbers.size() < kMostDimensions, "has more than ",
          kMostDimensions, " dimensions");
    check(field_ != Field::kOffsets || numbers.size() < 2, kOffsets);
    numbers.push_back(value);
    return true;
  }

  bool end_array() override {
    place_ = Place::kEntry;
    check(field_ != Field::kOffsets || draft_.offsets.size() == 2, kOffsets);
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kHeader) {
      place_ = Place::kEnd;
      return true;
    }
    if (place_ == Place::kEntry) add();
    place_ = Place::kHeader;
    return true;
  }

 private:
  enum class Place { kStart, kHeader, kMetadata, kEntry, kArray, kEnd };
  enum class Field { kNone, kDtype, kShape, kOffsets };

  /// What was read of the entry at hand.
  struct Draft {
    const DtypeName* dtype = nullptr;
    std::vector<uint64_t> shape, offsets;
    bool has_shape = false, has_offsets = false;
  };

  static constexpr const char* kMetadataKey = "__metadata__";
  static constexpr const char* kFields = "must have the fields dtype, shape and data_offsets";
  static constexpr const char* kOffsets = "has data_offsets that are no pair of naturals";

  template <typename... What>
  void check(bool fits, const What&... what) const {
    TORCH_CHECK_VALUE(fits, "nsn: '", path_, "': tensor '", name_, "' ", what...,
                      ". The file is damaged or foreign; save it again.");
  }

  static std::string text_of(const std::vector<uint64_t>& numbers) {
    std::string result = "[";
    for (const uint64_t each : numbers) {
      if (result.size() > 1) result += ',';
      result += std::to_string(each);
    }
    return result += ']';
  }

  bool twice(const std::string& name) {
    problem = "has the field '" + name + "' twice in one object";
    return false;
  }

  /// A value of a kind that does not belong there.
  bool other() override {
    if (place_ == Place::kStart) {
      problem = "is no JSON object";
      return false;
    }
    if (name_ == kMetadataKey) {
      TORCH_CHECK_VALUE(place_ == Place::kMetadata, "nsn: '", path_,
                        "': __metadata__ must be an object. The file is damaged or foreign.");
      TORCH_CHECK_VALUE(false, "nsn: '", path_, "': the metadata '", key_,
                        "' must be a string. The file is damaged or foreign.");
    }
    check(field_ != Field::kDtype, "has a dtype that is no string");
    check(field_ != Field::kShape, "has a shape that is no array of naturals");
    check(field_ != Field::kOffsets, kOffsets);
    check(false, kFields);
    return false;
  }

  /// Takes in the entry that ends here.
  void add() {
    const auto& [dtype, shape, offsets, has_shape, has_offsets] = draft_;
    check(dtype != nullptr && has_shape && has_offsets, kFields);
    TORCH_CHECK_VALUE(entries.size() < kMostTensors, "nsn: '", path_, "' has more than ",
                      kMostTensors, " tensors. The file is damaged or foreign.");
    Entry entry{name_, dtype->dtype, {}, offsets[0], offsets[1]};
    uint64_t bytes = c10::elementSize(entry.dtype);
    // What strides grow to: as bytes, but with zeros for ones.
    int64_t most = 1;
    for (const uint64_t extent : shape) {
      check(!__builtin_mul_overflow(bytes, extent, &bytes) &&
                !__builtin_mul_overflow(most, std::max(extent, uint64_t{1}), &most),
            "has the shape ", text_of(shape), ", which no memory holds");
      entry.shape.push_back(static_cast<int64_t>(extent));
    }
    check(entry.begin <= entry.end && entry.end - entry.begin == bytes, "of shape ", text_of(shape),
          " and dtype ", dtype->name, " takes ", bytes, " bytes, but its data_offsets are ",
          text_of(offsets));
    entries.push_back(std::move(entry));
  }

  const std::string& path_;
  Place place_ = Place::kStart;
  Field field_ = Field::kNone;
  bool has_metadata_ = false;
  std::string name_, key_;
  Draft draft_;
};

}  // namespace

void write(const std::string& path, const NamedTensors& tensors,
           const std::map<std::string, std::string>& metadata) {
  const std::string header = header_of(tensors, metadata);
  detail::NewFile file(path);
  std::array<unsigned char, kLengthBytes> length{};
  for (const size_t i : c10::irange(kLengthBytes)) {
    length[i] = static_cast<unsigned char>((header.size() >> (8 * i)) & 0xFFU);
  }
  file.write(length.data(), kLengthBytes);
  file.write(header.data(), header.size());
  for (const auto& [name, tensor] : tensors) {
    static_cast<void>(name);
    const at::Tensor bytes = tensor.detach().cpu().contiguous();
    file.write(bytes.const_data_ptr(), bytes.nbytes());
  }
  file.commit();
}

File::File(std::string path)
    : path_(std::move(path)), descriptor_(detail::open_for_reading(path_)) {
  read_header();
}

void File::read_at(uint64_t place, void* to, uint64_t size) {
  char* next = static_cast<char*>(to);
  while (size > 0) {
    const ssize_t got = ::pread(descriptor_.number(), next, size, static_cast<off_t>(place));
    if (got < 0) {
      if (errno == EINTR) continue;
      detail::refuse_file(path_, "read");
    }
    TORCH_CHECK_VALUE(got > 0, "nsn: '", path_,
                      "' became shorter while it was read. Read it again "
                      "when nobody writes it.");
    const auto count = static_cast<uint64_t>(got);
    next += count;
    place += count;
    size -= count;
    bytes_read_ += count;
  }
}

void File::read(uint64_t begin, void* to, uint64_t size) {
  TORCH_CHECK_VALUE(begin <= data_bytes_ && size <= data_bytes_ - begin, "nsn: '", path_, "' has ",
                    data_bytes_, " bytes of tensors, but ", size, " from byte ", begin,
                    " on are needed. It is truncated.");
  read_at(data_begin_ + begin, to, size);
}

void File::read_header() {
  struct stat status{};
  if (::fstat(descriptor_.number(), &status) != 0) detail::refuse_file(path_, "read");
  const auto size = static_cast<uint64_t>(status.st_size);
  TORCH_CHECK_VALUE(size >= kLengthBytes, "nsn: '", path_, "' has ", size,
                    " bytes, but a safetensors file has at least 8. It is truncated or foreign.");
  std::array<unsigned char, kLengthBytes> length{};
  read_at(0, length.data(), kLengthBytes);
  uint64_t header_bytes = 0;
  for (const size_t i : c10::irange(kLengthBytes)) {
    header_bytes |= static_cast<uint64_t>(length[i]) << (8 * i);
  }
  TORCH_CHECK_VALUE(header_bytes <= kMostHeaderBytes && header_bytes <= size - kLengthBytes,
                    "nsn: '", path_, "' is no complete safetensors file: it announces a header of ",
                    header_bytes, " bytes and has ", size - kLengthBytes,
                    " after the announcement. It is truncated or foreign.");
  std::string text(header_bytes, '\0');
  read_at(kLengthBytes, text.data(), header_bytes);
  data_begin_ = kLengthBytes + header_bytes;
  data_bytes_ = size - data_begin_;

  HeaderReader reader(path_);
  const bool is_read = reader.visit(text);
  TORCH_CHECK_VALUE(is_read, "nsn: '", path_, "' is no safetensors file: its header ",
                    reader.problem, ". Save the network with nsn::save.");
  entries_ = std::move(reader.entries);
  metadata_ = std::move(reader.metadata);
  std::sort(entries_.begin(), entries_.end(),
            [](const Entry& a, const Entry& b) { return a.name < b.name; });
  const auto again =
      std::adjacent_find(entries_.begin(), entries_.end(),
                         [](const Entry& a, const Entry& b) { return a.name == b.name; });
  TORCH_CHECK_VALUE(again == entries_.end(), "nsn: '", path_, "' has the tensor '", again->name,
                    "' twice. The file is damaged or foreign; save it again.");
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t next = 0;
  for (const Entry& entry : entries_) {
    TORCH_CHECK_VALUE(entry.begin == next, "nsn: '", path_, "': tensor '", entry.name,
                      "' starts at byte ", entry.begin, ", but the one before it ends at ", next,
                      ". The file is damaged; save it again.");
    next = entry.end;
  }
  TORCH_CHECK_VALUE(next >= data_bytes_, "nsn: '", path_, "': the header describes ", next,
                    " bytes of tensors, but the file has ", data_bytes_,
                    ". It is truncated or damaged; save it again.");
}

}  // namespace nsn::safetensors
