#include <ATen/ops/zeros.h>
#include <c10/util/accumulate.h>
#include <nsn/checkpoint/checkpoint.h>
#include <nsn/description/summary.h>
#include <nsn/inference/pack.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

// A libFuzzer target: whatever a checkpoint's bytes are, reading it is an error of nsn's or gives a
// network, what is loaded in part is what is loaded whole, and a small network runs.

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "fuzz_checkpoint: %s\n", what.c_str());
  std::abort();
}

/// A file in memory.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("checkpoint", 0)) {
    if (descriptor_ < 0) fail("no memfd");
  }
  void fill(const uint8_t* data, size_t size) {
    if (::ftruncate(descriptor_, 0) != 0) fail("no ftruncate");
    if (::pwrite(descriptor_, data, size, 0) != static_cast<ssize_t>(size)) fail("no pwrite");
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

/// Nothing where reading is refused; any other exception gets away and is a finding.
template <typename Call>
auto unless_refused(const Call& call) -> std::optional<decltype(call())> {
  try {
    return call();
  } catch (const c10::Error& error) {
    if (std::strlen(error.what_without_backtrace()) == 0) fail("an error without a message");
    return std::nullopt;
  }
}

/// That a sub-network has the same bits in both.
void compare(const nsn::Network& a, const nsn::Network& b, const std::string& name) {
  const auto own = a->view(name).parameters(), other = b->view(name).parameters();
  if (own.size() != other.size()) fail("another number of parameters");
  for (size_t i = 0; i < own.size(); ++i) {
    const at::Tensor x = own[i].contiguous(), y = other[i].contiguous();
    if (x.nbytes() != y.nbytes() || std::memcmp(x.data_ptr(), y.data_ptr(), x.nbytes()) != 0) {
      fail("sub-network '" + name + "' differs between whole and part");
    }
  }
}

void check_description(const nsn::Description& description) {
  const std::string text = description.to_json();
  if (nsn::Description::from_json(text).to_json() != text) fail("the description changes");
  nsn::describe(description);
}

/// A training step, and a pack with its views, of a network that is small enough to run: whatever
/// is wrong with its numbers, it computes or says what is.
void use(nsn::Network net) {
  constexpr int64_t kMostElements = 20'000, kMostFlops = 2'000'000;
  const nsn::Description& description = net->description();
  for (const auto& summary : nsn::describe(description)) {
    if (summary.flops > kMostFlops) return;
    for (const auto& block : summary.blocks) {
      if (c10::multiply_integers(block.output) > kMostElements) return;
    }
  }
  if (c10::multiply_integers(description.input()) > kMostElements) return;
  if (description.subnetworks().size() > 8 || description.blocks().size() > 32) return;
  nsn::Shape shape = description.input();
  shape.insert(shape.begin(), 2);
  const at::Tensor x = at::zeros(shape, at::TensorOptions().dtype(description.dtype()));
  unless_refused([&] {
    at::Tensor loss = at::zeros({}, at::TensorOptions().dtype(description.parameter_dtype()));
    for (const auto& output : net->joint(x)) loss = loss + output.value().sum();
    if (loss.requires_grad()) loss.backward();
    return 0;
  });
  net->eval();
  unless_refused([&] {
    nsn::Pack pack(net);
    for (const std::string& name : description.names()) pack.view(name)(x);
    if (pack.stale()) fail("a new pack is stale");
    pack.refresh();
    return 0;
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static MemoryFile file;
  file.fill(data, size);
  const std::string path = file.path();
  unless_refused([&] { return nsn::read_metadata(path); });
  const auto whole = unless_refused([&] { return nsn::load(path); });
  // A cut file is refused as a whole, and its names are not known: those of the corpus.
  std::vector<std::string> names = {"base", "small", "half"};
  if (whole) {
    check_description((*whole)->description());
    names = (*whole)->description().names();
    names.resize(std::min<size_t>(names.size(), 4));
  }
  for (const std::string& name : names) {
    const auto part = unless_refused([&] { return nsn::load_only(path, name); });
    if (whole && !part) fail("'" + name + "' is refused, but the whole is not");
    if (!part) continue;
    if (whole) compare(*part, *whole, name);
    for (const std::string& other : names) {
      unless_refused([&] { return nsn::load_rest(*part, path, other), 0; });
    }
    const bool complete =
        unless_refused([&] { return nsn::load_rest(*part, path), 0; }).has_value();
    if (whole && !complete) fail("the rest is refused, but the whole is not");
    if (complete && (*part)->loaded() != (*part)->description().names()) fail("some is missing");
    for (const std::string& other : names) {
      if (whole) compare(*part, *whole, other);
    }
  }
  if (whole) use(*whole);
  return 0;
}

// -------------------------------------------------------------------------------------------------
// Mutations that keep what is around them valid, or else hardly any would pass the first checks.

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  constexpr size_t kLength = 8;
  uint64_t length = 0;
  if (size >= kLength) std::memcpy(&length, data, kLength);
  if (seed % 4 == 0 || size < kLength || length > size - kLength) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  std::string header(reinterpret_cast<const char*>(data) + kLength, length);
  std::string rest(reinterpret_cast<const char*>(data) + kLength + length, size - kLength - length);
  const auto mutate = [&](std::string& text) {
    const size_t before = text.size();
    text.resize(before + 256);
    text.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(text.data()), before, text.size()));
  };
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(header, nullptr, false);
  const nlohmann::ordered_json::json_pointer place("/__metadata__/nsn");
  if (seed % 4 == 1 && json.is_object() && json.contains(place) && json[place].is_string()) {
    auto description = json[place].get<std::string>();
    mutate(description);
    json[place] = description;
    header = json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  } else if (seed % 4 == 2) {
    mutate(header);
  } else {  // a cut file
    rest.resize(seed / 4 % (rest.size() + 1));
  }
  const std::string all = header + rest;
  if (all.size() + kLength > max_size) return size;
  const uint64_t announced = header.size();
  std::memcpy(data, &announced, kLength);
  std::memcpy(data + kLength, all.data(), all.size());
  return kLength + all.size();
}
