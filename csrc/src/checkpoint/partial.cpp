#include "checkpoint/partial.h"

#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <unordered_map>

namespace nsn::safetensors {

namespace {

/// Address space that takes memory where it is written to, and reads as zeros elsewhere.
class Reservation {
 public:
  explicit Reservation(size_t size) : size_(size) {
    void* place = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK_VALUE(place != MAP_FAILED, "nsn::load: cannot reserve address space for ", size,
                      " bytes of tensors: ", std::strerror(errno),
                      ". Load a smaller network, or lift the limit (ulimit -v).");
    begin_ = static_cast<char*>(place);
    // A huge page would take memory for 2 MB around each byte.
    ::madvise(place, size, MADV_NOHUGEPAGE);
  }
  ~Reservation() { ::munmap(begin_, size_); }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  char* begin() const { return begin_; }

 private:
  size_t size_;
  char* begin_ = nullptr;
};

}  // namespace

std::vector<at::Tensor> reserve(const File& file, const std::vector<const Entry*>& entries) {
  constexpr uint64_t kAlignment = 64;  // as torch's allocator
  std::unordered_map<const Entry*, uint64_t> places;
  constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
  uint64_t size = 0;
  for (const Entry& entry : file.entries()) {
    places.emplace(&entry, size);
    const uint64_t bytes = entry.end - entry.begin;
    TORCH_CHECK_VALUE(
        !__builtin_add_overflow(size, bytes, &size) &&
            !__builtin_add_overflow(size, kAlignment - 1, &size) && size <= kMost,
        "nsn::load: '", file.path(), "' describes ", file.described_bytes(),
        " bytes of tensors, which no memory holds. The file is damaged; save it again.");
    size -= size % kAlignment;
  }
  const auto reservation = std::make_shared<const Reservation>(std::max<uint64_t>(size, 1));
  std::vector<at::Tensor> result;
  result.reserve(entries.size());
  for (const Entry* entry : entries) {
    result.push_back(at::from_blob(
        reservation->begin() + places.at(entry), entry->shape, [reservation](void*) {},
        at::TensorOptions().dtype(entry->dtype)));
  }
  return result;
}

void RunReader::add(uint64_t begin, uint64_t end) {
  // A page: the system reads no less, and the tensor takes no less.
  constexpr uint64_t kClose = 4096;
  constexpr uint64_t kMost = 65536;
  if (!runs_.empty()) {
    const uint64_t last = runs_.back().second;
    if (begin == last && (runs_.size() == 1 || end - runs_.front().first <= kMost)) {
      runs_.back().second = end;
      return;
    }
    if (begin - last > kClose || end - runs_.front().first > kMost) finish();
  }
  runs_.emplace_back(begin, end);
}

void RunReader::finish() {
  if (runs_.empty()) return;
  const uint64_t first = runs_.front().first, size = runs_.back().second - first;
  if (runs_.size() == 1) {
    file_.read(entry_.begin + first, to_ + first, size);
  } else {
    // What lies between is somebody else's, and may have changed.
    buffer_.resize(size);
    file_.read(entry_.begin + first, buffer_.data(), size);
    for (const auto& [begin, end] : runs_) {
      std::memcpy(to_ + begin, buffer_.data() + (begin - first), end - begin);
    }
  }
  runs_.clear();
}

}  // namespace nsn::safetensors
