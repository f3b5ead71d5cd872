#include "runtime/file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/bit_cast.h"
#include "kernels/panels.h"
#include "plan/fields.h"

namespace nsn::runtime {

namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian, read in place");

constexpr auto kWord = static_cast<int64_t>(sizeof(int64_t));

template <typename T>
struct IsOptional : std::false_type {};
template <typename T>
struct IsOptional<std::optional<T>> : std::true_type {};
template <typename T>
struct IsVector : std::false_type {};
template <typename T>
struct IsVector<std::vector<T>> : std::true_type {};

template <typename T>
concept Number = std::is_integral_v<T> || std::is_enum_v<T>;

/// The members of what is part of a file, in order, as plan::fields_of.
template <typename Struct>
auto members_of(Struct& s) {
  using T = std::remove_const_t<Struct>;
  if constexpr (std::is_same_v<T, Box>) {
    return std::tie(s.offset, s.bytes);
  } else if constexpr (std::is_same_v<T, FileTensor>) {
    return std::tie(s.out_ends, s.in_ends, s.sizes, s.type, s.boxes);
  } else if constexpr (std::is_same_v<T, FileSlice>) {
    return std::tie(s.tensor, s.out, s.in);
  } else if constexpr (std::is_same_v<T, FileNetwork>) {
    return std::tie(s.name, s.plan, s.table);
  } else if constexpr (std::is_same_v<T, plan::Plan>) {
    return std::tie(s.values, s.steps);
  } else if constexpr (std::is_same_v<T, plan::Value>) {
    return std::tie(s.shape, s.memory);
  } else if constexpr (std::is_same_v<T, plan::Step>) {
    return std::tie(s.block, s.kernel, s.inputs, s.output);
  } else {
    return plan::fields_of(s);
  }
}

/// Writes all as words of 64 bits: numbers as they are; vectors, strings and optionals behind their
/// count; kernels behind the place of theirs.
class Writer {
 public:
  explicit Writer(std::string& to) : to_(to) {}

  template <typename T>
  void operator()(const T& value) {
    if constexpr (Number<T>) {
      word(static_cast<int64_t>(value));
    } else if constexpr (std::is_same_v<T, double>) {
      word(kernels::bit_cast<int64_t>(value));
    } else if constexpr (std::is_same_v<T, std::string>) {
      word(static_cast<int64_t>(value.size()));
      to_ += value;
      to_.resize((to_.size() + kWord - 1) / kWord * kWord, '\0');
    } else if constexpr (IsOptional<T>::value) {
      word(value ? 1 : 0);
      if (value) (*this)(*value);
    } else if constexpr (IsVector<T>::value) {
      word(static_cast<int64_t>(value.size()));
      for (const auto& each : value) (*this)(each);
    } else if constexpr (std::is_same_v<T, plan::Kernel>) {
      word(static_cast<int64_t>(value.index()));
      std::visit(*this, value);
    } else if constexpr (requires { std::tuple_size<T>::value; }) {  // an array
      for (const auto& each : value) (*this)(each);
    } else {
      std::apply([this](const auto&... each) { ((*this)(each), ...); }, members_of(value));
    }
  }

 private:
  void word(int64_t value) { to_.append(reinterpret_cast<const char*>(&value), sizeof value); }

  std::string& to_;
};

/// Reads what Writer writes; a count is never larger than what is left could hold.
class Reader {
 public:
  explicit Reader(std::string_view from) : from_(from) {}

  template <typename T>
  void operator()(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      value = word() != 0;
    } else if constexpr (std::is_enum_v<T>) {
      // Of those that fit into 32 bits: which of them there are is for others to check.
      value = static_cast<T>(std::clamp<int64_t>(word(), -1, 1 << 20));
    } else if constexpr (Number<T>) {
      value = static_cast<T>(word());
    } else if constexpr (std::is_same_v<T, double>) {
      value = kernels::bit_cast<double>(word());
    } else if constexpr (std::is_same_v<T, std::string>) {
      const size_t size = count(1);
      value = from_.substr(0, size);
      skip((size + kWord - 1) / kWord * kWord);
    } else if constexpr (IsOptional<T>::value) {
      value.reset();
      if (word() != 0) (*this)(value.emplace());
    } else if constexpr (IsVector<T>::value) {
      // Each element takes a word at least, and no more memory than it takes in the file and a
      // constant.
      const size_t size = count(kWord);
      value.clear();
      for (size_t i = 0; i < size; ++i) (*this)(value.emplace_back());
    } else if constexpr (std::is_same_v<T, plan::Kernel>) {
      kernel(value, place_of_kernel());
    } else if constexpr (requires { std::tuple_size<T>::value; }) {
      for (auto& each : value) (*this)(each);
    } else {
      std::apply([this](auto&... each) { ((*this)(each), ...); }, members_of(value));
    }
  }

  bool is_at_end() const { return from_.empty(); }

 private:
  int64_t word() {
    int64_t value = 0;
    if (from_.size() < sizeof value) throw std::runtime_error("its header ends too early");
    std::memcpy(&value, from_.data(), sizeof value);
    from_.remove_prefix(sizeof value);
    return value;
  }
  void skip(size_t bytes) {
    if (bytes > from_.size()) throw std::runtime_error("its header ends too early");
    from_.remove_prefix(bytes);
  }
  size_t count(size_t bytes_each) {
    const int64_t value = word();
    // As int64_t, since size_t may have 32 bits.
    if (value < 0 || value > static_cast<int64_t>(from_.size() / bytes_each)) {
      throw std::runtime_error("its header names more than it holds");
    }
    return static_cast<size_t>(value);
  }
  size_t place_of_kernel() {
    const int64_t place = word();
    if (place < 0 || place >= static_cast<int64_t>(std::variant_size_v<plan::Kernel>)) {
      throw std::runtime_error("it has a kernel that is unknown");
    }
    return static_cast<size_t>(place);
  }
  template <size_t at = 0>
  void kernel(plan::Kernel& to, size_t place) {
    if constexpr (at < std::variant_size_v<plan::Kernel>) {
      if (place == at) {
        (*this)(to.emplace<at>());
      } else {
        kernel<at + 1>(to, place);
      }
    }
  }

  std::string_view from_;
};

int64_t up(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t interval(const std::vector<int64_t>& ends, size_t i) {
  return ends[i] - (i == 0 ? 0 : ends[i - 1]);
}

void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

void check_ends(const std::vector<int64_t>& ends) {
  int64_t last = 0;
  for (const int64_t end : ends) {
    require(end > last && end <= (int64_t{1} << 31), "a tensor is cut where it cannot be");
    last = end;
  }
}

void check(const FileTensor& tensor, const File& file) {
  const auto& [out_ends, in_ends, sizes, type, boxes] = tensor;
  check_ends(out_ends);
  check_ends(in_ends);
  require(out_ends.empty() == in_ends.empty(), "a tensor is cut in one way only");
  using kernels::WeightType;
  require(type >= WeightType::kFloat32 && type <= WeightType::kInt8,
          "a tensor is of a type that is unknown");
  require(tensor.is_panels() || type == WeightType::kFloat32,
          "a tensor is of a type that products alone read");
  const auto shape = tensor.shape();
  require(plan::is_shape({shape.sizes.begin(), shape.sizes.end()}),
          "a tensor has an extent below 1, or too many elements");
  require(boxes.size() == std::max<size_t>(1, out_ends.size() * in_ends.size()),
          "a tensor has boxes that are not its own");
  for (size_t i = 0; i < boxes.size(); ++i) {
    if (boxes[i].bytes == 0) continue;  // which nobody needs
    require(boxes[i].offset >= file.header_bytes && boxes[i].offset % kAlignment == 0 &&
                boxes[i].bytes == tensor.bytes(i) && boxes[i].offset <= file.bytes - boxes[i].bytes,
            "a tensor lies outside of the file");
  }
}

/// No byte belongs to two boxes, so that all of them together are no larger than the file.
void check_apart(const std::vector<FileTensor>& tensors) {
  std::vector<std::pair<int64_t, int64_t>> parts;
  for (const FileTensor& tensor : tensors) {
    for (const Box& box : tensor.boxes) {
      if (box.bytes > 0) parts.emplace_back(box.offset, box.offset + box.bytes);
    }
  }
  std::sort(parts.begin(), parts.end());
  for (size_t i = 1; i < parts.size(); ++i) {
    require(parts[i - 1].second <= parts[i].first, "two tensors lie in the same place");
  }
}

/// Slices are walked box by box, of which there are no more than a few for each byte of the header,
/// so that the time to open a file grows as its header does.
void check_slices(const File& file) {
  constexpr int64_t kMost = 32;
  int64_t boxes = 0;
  for (const FileNetwork& network : file.networks) {
    for (const auto& [tensor, out, in] : network.table) {
      require(tensor < file.tensors.size(), "a sub-network names a tensor that is not there");
      boxes += file.tensors[tensor].boxes_of(out, in);
      require(boxes <= kMost * file.header_bytes, kNamedTooOften);
    }
  }
}

void check_names(const std::vector<FileNetwork>& networks) {
  std::set<std::string> names;
  for (const FileNetwork& network : networks) {
    require(!network.name.empty() && network.name.find('\0') == std::string::npos &&
                names.insert(network.name).second,
            "two sub-networks have one name, or one has none");
  }
}

}  // namespace

void check(const FileNetwork& network, const File& file) {
  std::vector<plan::TensorShape> shapes;
  for (const auto& [tensor, out, in] : network.table) {
    shapes.push_back(file.tensors[tensor].shape());
    const auto& boxes = file.tensors[tensor].boxes;
    file.tensors[tensor].over_boxes(out, in, [&](size_t box) {
      require(boxes[box].bytes > 0, "a sub-network needs what is not in the file");
    });
    if (!shapes.back().is_panels) continue;
    auto& sizes = shapes.back().sizes;
    require(out >= 1 && in >= 1 && out <= sizes[0] && in <= sizes[1],
            "a sub-network names a slice that a tensor has not");
    sizes[0] = out;
    sizes[1] = in;
  }
  plan::check(network.plan, shapes);
}

namespace {

/// Where a tensor is cut along a dimension of which slices use so many: where they end, at
/// multiples of `unit`.
std::vector<int64_t> ends_of(const std::set<int64_t>& used, int64_t unit) {
  std::set<int64_t> ends;
  for (const int64_t count : used) {
    ends.insert(std::min((count + unit - 1) / unit * unit, *used.rbegin()));
  }
  return {ends.begin(), ends.end()};
}

void cut(File& file) {
  // Narrower parts would cost those who read several of them more time than others save bytes: by
  // half panels the recipes' CNN takes a fifth longer.
  constexpr int64_t kLeastInputs = 16;
  std::map<size_t, std::pair<std::set<int64_t>, std::set<int64_t>>> used;
  for (const FileNetwork& network : file.networks) {
    for (const auto& [tensor, out, in] : network.table) {
      if (out == 0) continue;  // not in panels
      used[tensor].first.insert(out);
      used[tensor].second.insert(in);
    }
  }
  for (const auto& [tensor, own] : used) {
    file.tensors[tensor].out_ends = ends_of(own.first, kernels::kPanel);
    file.tensors[tensor].in_ends = ends_of(own.second, kLeastInputs);
  }
}

}  // namespace

plan::TensorShape FileTensor::shape() const {
  if (!is_panels()) return {false, sizes};
  return {true, {out_ends.back(), in_ends.back(), sizes[0]}};
}

int64_t FileTensor::elements(size_t box) const {
  if (!is_panels()) return sizes[0] * sizes[1] * sizes[2];
  return kernels::panel_elements(interval(out_ends, box / in_ends.size()),
                                 interval(in_ends, box % in_ends.size()), sizes[0]);
}

int64_t FileTensor::boxes_of(int64_t out, int64_t in) const {
  if (!is_panels()) return 1;
  // Those that end before the slice does, and one more.
  const auto count = [](const std::vector<int64_t>& ends, int64_t part) {
    const auto before = std::lower_bound(ends.begin(), ends.end(), part) - ends.begin();
    return std::min<int64_t>(before + 1, static_cast<int64_t>(ends.size()));
  };
  return count(out_ends, out) * count(in_ends, in);
}

int64_t FileTensor::pointers(int64_t out, int64_t in) const {
  int64_t result = 0;
  if (!is_panels()) return result;
  over_boxes(out, in, [&](size_t box) {
    const int64_t features = interval(out_ends, box / in_ends.size());
    result += (features + kernels::kPanel - 1) / kernels::kPanel *
              static_cast<int64_t>(sizeof(kernels::Segment) + sizeof(kernels::Panel));
  });
  return result;
}

int64_t File::needed_by(const FileNetwork& network) const {
  int64_t end = header_bytes;
  over_boxes(network, [&](size_t tensor, size_t i) {
    const Box& box = tensors[tensor].boxes[i];
    end = std::max(end, box.offset + box.bytes);
  });
  return end;
}

void place(File& file) {
  cut(file);
  // The fewer weights a sub-network needs, the earlier they lie.
  std::vector<std::pair<int64_t, const FileNetwork*>> order;
  for (const FileNetwork& network : file.networks) {
    int64_t bytes = 0;
    file.over_boxes(network,
                    [&](size_t tensor, size_t box) { bytes += file.tensors[tensor].bytes(box); });
    order.emplace_back(bytes, &network);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (FileTensor& tensor : file.tensors) {
    tensor.boxes.assign(std::max<size_t>(1, tensor.out_ends.size() * tensor.in_ends.size()), {});
  }
  file.header_bytes = 0;  // words are as long whatever they say
  file.header_bytes = up(static_cast<int64_t>(header_of(file).size()));
  file.bytes = file.header_bytes;
  for (const auto& [bytes, network] : order) {
    static_cast<void>(bytes);
    file.over_boxes(*network, [&](size_t tensor, size_t i) {
      Box& box = file.tensors[tensor].boxes[i];
      if (box.bytes > 0) return;
      box = {up(file.bytes), file.tensors[tensor].bytes(i)};
      file.bytes = box.offset + box.bytes;
    });
  }
}

std::string header_of(const File& file) {
  std::string result(kMagic);
  Writer write(result);
  write(kVersion);
  write(file.header_bytes);
  write(file.bytes);
  write(file.tensors);
  write(file.networks);
  // While it is being placed, its length is not known.
  result.resize(std::max(result.size(), static_cast<size_t>(file.header_bytes)), '\0');
  return result;
}

File read_header(std::string_view all) {
  require(all.substr(0, kMagic.size()) == kMagic.substr(0, all.size()),
          "it is none: its first bytes are others");
  // The magic number, the version and the sizes.
  constexpr size_t kFirst = kMagic.size() + 3 * kWord;
  if (all.size() < kFirst) throw CutHeader("its header");
  Reader first(all.substr(kMagic.size()));
  int64_t version = 0;
  first(version);
  if (version != kVersion) {
    throw std::runtime_error("it has version " + std::to_string(version) +
                             ", but this program reads " + std::to_string(kVersion) +
                             ", which its own nsn writes");
  }
  File file;
  first(file.header_bytes);
  first(file.bytes);
  require(file.header_bytes >= static_cast<int64_t>(kFirst) && file.header_bytes <= file.bytes &&
              file.bytes <= (int64_t{1} << 46),
          "its sizes are out of range");
  if (static_cast<int64_t>(all.size()) < file.header_bytes) {
    throw CutHeader("its header of " + std::to_string(file.header_bytes) + " bytes");
  }
  Reader read(all.substr(kFirst, static_cast<size_t>(file.header_bytes) - kFirst));
  read(file.tensors);
  read(file.networks);
  for (const FileTensor& tensor : file.tensors) check(tensor, file);
  check_apart(file.tensors);
  check_names(file.networks);
  check_slices(file);
  for (FileNetwork& network : file.networks) {
    try {
      check(network, file);
    } catch (const plan::BadPlan& error) {
      throw std::runtime_error("the plan of sub-network '" + network.name +
                               "' is damaged: " + error.what());
    }
    network.plan.place();
  }
  return file;
}

}  // namespace nsn::runtime
