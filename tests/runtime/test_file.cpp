// Files that are damaged, cut or made to do harm: an error, and nothing else.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "folder.h"
#include "nsn/runtime/session.h"
#include "sample.h"

namespace nsn::test {
namespace {

using runtime::Error;
using runtime::Model;
using runtime::Session;

std::string sample_bytes(uint64_t seed) {
  Sample sample(seed);
  sample.network("random", 60, 6);
  sample.mlp({3, 20}, 5, 2);
  sample.transformer("text", 5, 2, 4, true);
  return sample.bytes();
}

/// Opens and runs all that can be; says what was wrong.
std::string opened(const std::string& path) {
  try {
    const Model model = Model::open(path);
    int64_t bytes = 0;
    for (const auto& each : model.subnetworks()) {
      bytes += plan::numel(each.input) + plan::numel(each.output);
    }
    // What it says of itself may be as large as it likes; then a session is not for this test.
    if (bytes > (1 << 20)) return "";
    if (Session::bytes_for(model, {2, 1, {}}) > (1 << 28)) return "";
    try {
      Session session(model, {2, 1, {}});
      for (size_t i = 0; i < model.subnetworks().size(); ++i) {
        const auto& own = model.subnetworks()[i];
        std::vector<float> y(static_cast<size_t>(2 * plan::numel(own.output)));
        if (own.takes_numbers) {
          const std::vector<int64_t> x(static_cast<size_t>(2 * plan::numel(own.input)));
          session.run(i, x.data(), y.data(), 2);
        } else {
          const std::vector<float> x(static_cast<size_t>(2 * plan::numel(own.input)));
          session.run(i, x.data(), y.data(), 2);
        }
      }
    } catch (const std::bad_alloc&) {
      return "";
    }
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void expect_says(const std::string& path, const std::string& what) {
  const std::string found = opened(path);
  EXPECT_NE(found.find(what), std::string::npos) << found;
  EXPECT_NE(found.find("'" + path + "'"), std::string::npos) << found;
}

TEST(RuntimeFile, IsReadAsItWasWritten) {
  Sample sample(2);
  sample.network("a", 60, 10);
  sample.transformer("b", 5, 2, 4, true);
  const std::string bytes = sample.bytes();
  const runtime::File read = runtime::read_header(bytes);
  EXPECT_EQ(runtime::header_of(read), runtime::header_of(sample.file()));
  EXPECT_EQ(read.networks[0].name, "a");
  EXPECT_EQ(read.bytes, static_cast<int64_t>(bytes.size()));
  EXPECT_EQ(read.header_bytes % runtime::kAlignment, 0);
}

TEST(RuntimeFile, WhatIsNoneIsRefused) {
  const Folder folder;
  expect_says(folder / "absent",
              "cannot be opened: No such file or directory. Check the path and its");
  write(folder / "empty", "");
  EXPECT_NE(opened(folder / "empty" + std::string("\0more", 5)).find("goes on behind a NUL byte"),
            std::string::npos);
  expect_says(folder / "empty", "ends after 0 bytes, in its header. Append the rest");
  write(folder / "text", "no network at all, but long enough to be read as if it were one");
  expect_says(folder / "text", "its first bytes are others");
  ::mkdir((folder / "folder").c_str(), 0700);
  expect_says(folder / "folder", "is no regular file, but a folder. Give the path of a file.");
#if !defined(__EMSCRIPTEN__)  // whose files in memory have no pipes
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_says(folder / "pipe", "is no regular file, but a pipe or device. Give the path");
#endif
  std::string other = sample_bytes(1);
  other[8] = 9;
  write(folder / "version", other);
  expect_says(
      folder / "version",
      "it has version 9, but this program reads 5, which its own nsn writes. Write it with");
}

TEST(RuntimeFile, OneThatIsCutInTheHeaderIsRefused) {
  const Folder folder;
  const std::string bytes = sample_bytes(1);
  const auto header = static_cast<size_t>(runtime::read_header(bytes).header_bytes);
  for (size_t size = 0; size + runtime::kAlignment < header; size += 1 + size / 7) {
    write(folder / "cut", bytes.substr(0, size));
    if (size == 0) continue;
    expect_says(folder / "cut", "' ends after " + std::to_string(size) + " bytes, in its header");
    expect_says(folder / "cut", ". Append the rest, and open it then.");
  }
}

TEST(RuntimeFile, DamageIsAnErrorOrOtherNumbersAndNeverACrash) {
  const Folder folder;
  int refused = 0;
  for (uint64_t seed = 0; seed < 1500; ++seed) {
    Sample random(seed);
    std::string bytes = sample_bytes(seed % 5);
    const int64_t header = runtime::read_header(bytes).header_bytes;
    for (int64_t i = random.integer(1, 3); i > 0; --i) {
      // A word of the header: another number, a large one, a negative one, one beside it.
      const auto at = static_cast<size_t>(random.integer(1, header / 8 - 1) * 8);
      int64_t word = 0;
      std::memcpy(&word, bytes.data() + at, sizeof word);
      const int64_t others[] = {random.integer(0, 100),
                                int64_t{1} << random.integer(20, 62),
                                -random.integer(1, 100),
                                word + 1,
                                word - 1,
                                word * 2,
                                0};
      word = others[random.integer(0, 6)];
      std::memcpy(bytes.data() + at, &word, sizeof word);
    }
    write(folder / "damaged", bytes);
    refused += opened(folder / "damaged").empty() ? 0 : 1;
  }
  EXPECT_GT(refused, 1000);
}

TEST(RuntimeFile, NamesNoWeightOverAndOver) {
  const Folder folder;
  Sample sample(1);
  sample.mlp({1 << 16}, 1, 1);
  sample.bytes();
  // Before it is placed, so that all of it fits but for the memory that pointing to it would take.
  auto& table = sample.file_.networks[0].table;
  table.resize(20'000, table[0]);
  write(folder / "often", sample.bytes());
  expect_says(folder / "often", "its sub-networks name the same weights too often");
}

/// However many boxes there are to be walked, over and over.
TEST(RuntimeFile, OpensInATimeThatGrowsAsItsHeaderDoes) {
  Sample sample(1);
  std::vector<int64_t> widths;
  for (int64_t i = 1; i <= 60; ++i) widths.push_back(16 * i);
  sample.cnn(widths, {1, 1}, {2, 2}, {1, 1});
  EXPECT_GT(runtime::read_header(sample.bytes()).tensors[1].boxes.size(), 1500U);
  auto& table = sample.file_.networks.back().table;
  const auto widest = *std::find_if(table.begin(), table.end(),
                                    [](const auto& slice) { return slice.tensor == 1; });
  table.resize(20'000, widest);
  try {
    runtime::read_header(sample.bytes());
    FAIL() << "was read";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), runtime::kNamedTooOften);
  }
}

/// A file whose parts were changed before it was written.
std::string changed(const std::function<void(runtime::File&)>& change) {
  Sample sample(1);
  sample.mlp({3, 20}, 5, 2);
  sample.transformer("text", 5, 2, 4, true);
  std::string bytes = sample.bytes();
  runtime::File file = sample.file();
  // Room for what the change adds to the header.
  constexpr int64_t kRoom = 1 << 14;
  const auto old_header = static_cast<size_t>(file.header_bytes);
  file.header_bytes += kRoom;
  file.bytes += kRoom;
  for (runtime::FileTensor& tensor : file.tensors) {
    for (runtime::Box& box : tensor.boxes) box.offset += box.bytes > 0 ? kRoom : 0;
  }
  change(file);
  return runtime::header_of(file) + bytes.substr(old_header);
}

TEST(RuntimeFile, PlansThatWouldReachOutsideAreRefused) {
  const Folder folder;
  using plan::Multiply;
  const auto multiply = [](runtime::File& file) -> Multiply& {
    return std::get<Multiply>(file.networks[0].plan.steps[0].kernel);
  };
  // A product as a convolution.
  const auto of_one_tap = [](const Multiply& k, plan::Pair in, plan::Pair out, plan::Pair padding) {
    return plan::Convolve{{in, out, {1, 1}, {1, 1}, padding}, k.in, k.out, 1, k.weight, {}};
  };
  // One of 300 positions, of which it is to keep the largest.
  const auto pooled = [&](runtime::File& file, plan::Pair pool) -> plan::Convolve& {
    plan::Plan& plan = file.networks[0].plan;
    plan.values[0].shape = {1500};
    plan::Convolve k = of_one_tap(multiply(file), {1, 300}, {1, 300}, {0, 0});
    k.pool = pool;
    return plan.steps[0].kernel.emplace<plan::Convolve>(k);
  };
  const std::vector<std::pair<std::string, std::function<void(runtime::File&)>>> cases = {
      {"its weight has other extents", [&](auto& f) { f.networks[0].table[0].in = 4; }},
      // A slice that is larger than what its kernel says would be multiplied all the same.
      {"its weight has other extents", [&](auto& f) { f.networks[0].table[0].out = 4; }},
      {"its weight has other extents",
       [&](auto& f) {
         multiply(f).in = 4;
         f.networks[0].plan.values[0].shape = {4};
       }},
      {"two sub-networks have one name", [&](auto& f) { f.networks[1].name = "w3"; }},
      {"two sub-networks have one name", [&](auto& f) { f.networks[1].name.clear(); }},
      {"two sub-networks have one name",
       [&](auto& f) { f.networks[1].name = std::string("w\0x", 3); }},
      {"two tensors lie in the same place",
       [&](auto& f) { f.tensors[3].boxes[0].offset = f.tensors[2].boxes[0].offset; }},
      {"a sub-network needs what is not in the file",
       [&](auto& f) { f.tensors[2].boxes[0] = {0, 0}; }},
      {"names a slice that a tensor has not", [&](auto& f) { f.networks[0].table[0].in = 6; }},
      {"names a tensor that is not there", [&](auto& f) { f.networks[0].table[0].tensor = 99; }},
      {"it reads a value of another size", [&](auto& f) { multiply(f).in = 6; }},
      {"it makes a value of another size", [&](auto& f) { multiply(f).out = 4; }},
      {"an extent is below 1, or above 2^31", [&](auto& f) { multiply(f).rows = 0; }},
      {"an extent is below 1, or above 2^31",
       [&](auto& f) { multiply(f).rows = int64_t{1} << 40; }},
      {"it names a tensor that is not there", [&](auto& f) { multiply(f).weight = 77; }},
      {"its tensor has other extents",
       [&](auto& f) { f.networks[1].table[1].tensor = f.networks[0].table[3].tensor; }},
      {"its function is unknown",
       [&](auto& f) { multiply(f).epilogue.function = static_cast<plan::Function>(9); }},
      {"it reads a value that is not there", [&](auto& f) { multiply(f).epilogue.residual = 2; }},
      {"it reads a value that is not there",
       [&](auto& f) { f.networks[0].plan.steps[0].inputs = {1}; }},
      {"it has too many inputs, or too few",
       [&](auto& f) { f.networks[0].plan.steps[0].inputs = {}; }},
      {"it makes a value that is there already",
       [&](auto& f) { f.networks[0].plan.steps[1] = {"", plan::Copy{3}, {1}, 1}; }},
      {"the last step, and no other, is to make the output",
       [&](auto& f) { f.networks[0].plan.values[2].memory = plan::Memory::kArena; }},
      {"its first value is not its input",
       [&](auto& f) { f.networks[0].plan.values[0].memory = plan::Memory::kArena; }},
      {"not each step makes one value", [&](auto& f) { f.networks[0].plan.values.pop_back(); }},
      {"what it makes has an extent below 1",
       [&](auto& f) { f.networks[0].plan.values[1].shape = {-3}; }},
      {"it embeds another value than the input",
       [&](auto& f) { f.networks[2].plan.steps[0].inputs = {1}; }},
      {"it computes with numbers that are embedded",
       [&](auto& f) {
         f.networks[2].plan.steps.back().kernel = plan::Apply{5, plan::Function::kRelu};
         f.networks[2].plan.steps.back().inputs = {0};
         f.networks[2].plan.values.back().shape = {5};
       }},
      {"its window has an extent, stride or dilation below 1",
       [&](auto& f) {
         f.networks[0].plan.steps[0].kernel = of_one_tap(multiply(f), {1, 1}, {1, 1}, {0, -1});
       }},
      {"its pool is out of range", [&](auto& f) { pooled(f, {0, 1}); }},
      {"its pool is out of range", [&](auto& f) { pooled(f, {1, 301}); }},
      {"it cannot pool", [&](auto& f) { pooled(f, {1, 300}); }},
      {"it cannot pool",
       [&](auto& f) { pooled(f, {1, 8}).epilogue.function = plan::Function::kTanh; }},
      {"it cannot pool",
       [&](auto& f) { pooled(f, {1, 8}).epilogue.after = plan::Function::kRelu; }},
      {"it cannot pool", [&](auto& f) { pooled(f, {1, 8}).epilogue.residual = 0; }},
      {"it calls its user", [&](auto& f) { f.networks[0].plan.steps[0].kernel = plan::Call{0}; }},
      {"it has more than 2^20 positions",
       [&](auto& f) {
         f.networks[0].plan.values[0].shape = {int64_t{3} << 21};
         f.networks[0].plan.values[1].shape = {int64_t{1} << 21};
         f.networks[0].plan.steps[0].kernel = plan::Attend{int64_t{1} << 21, 1, 1, true};
       }},
      {"a tensor lies outside of the file", [&](auto& f) { f.tensors[0].boxes[0].offset = 64; }},
      {"a tensor lies outside of the file",
       [&](auto& f) { f.tensors[0].boxes[0].offset = (f.bytes + 63) / 64 * 64; }},
      {"a tensor lies outside of the file", [&](auto& f) { f.tensors[0].boxes[0].bytes += 64; }},
      {"a tensor lies outside of the file", [&](auto& f) { f.tensors[0].boxes[0].offset += 4; }},
      {"a tensor has boxes that are not its own", [&](auto& f) { f.tensors[0].boxes.pop_back(); }},
      {"a tensor is cut where it cannot be", [&](auto& f) { f.tensors[0].out_ends = {20, 3}; }},
      {"a tensor is cut in one way only", [&](auto& f) { f.tensors[0].in_ends.clear(); }},
      {"a tensor has an extent below 1", [&](auto& f) { f.tensors[2].sizes[2] = -1; }},
      {"its sizes are out of range", [&](auto& f) { f.bytes = int64_t{1} << 50; }},
  };
  for (const auto& [what, change] : cases) {
    write(folder / "hostile", changed(change));
    expect_says(folder / "hostile", what);
  }
}

TEST(RuntimeFile, WhatASessionOfItWouldTakeIsKnownBefore) {
  const Folder folder;
  // Of which there is nothing but the header.
  Sample sample(1);
  sample.mlp({3}, 5, 2);
  runtime::File file = sample.file();
  constexpr int64_t kElements = int64_t{1} << 31;
  runtime::FileNetwork& network = file.networks[0];
  file.tensors.clear();
  network.table.clear();
  network.plan.values.assign(4, {{kElements}, plan::Memory::kArena});
  network.plan.values.front().memory = plan::Memory::kInput;
  network.plan.values.back().memory = plan::Memory::kOutput;
  network.plan.steps.resize(3);
  for (size_t i = 0; i < 3; ++i) {
    network.plan.steps[i] = {"", plan::Apply{kElements, plan::Function::kRelu}, {i}, i + 1};
  }
  runtime::place(file);
  const std::string bytes = runtime::header_of(file);
  EXPECT_LT(bytes.size(), 700U);
  write(folder / "wide", bytes);
  const Model model = Model::open(folder / "wide");
  EXPECT_TRUE(model.has(0));
  EXPECT_GE(Session::bytes_for(model), 4 * kElements);
  // A part of a batch is no larger, and does not overflow.
  EXPECT_GE(Session::bytes_for(model, {int64_t{1} << 30, 1024, {}}), 4 * kElements);
}

#if SIZE_MAX == UINT32_MAX
TEST(RuntimeFile, WhatIsTooLargeForAddressesOf32BitsIsAnError) {
  const Folder folder;
  const std::string large = changed([](auto& f) { f.bytes = (int64_t{1} << 32) + 64; });
  write(folder / "large", large);
  expect_says(folder / "large", "cannot be mapped");
  // In memory it is what is there of it.
  std::vector<float> memory(large.size() / sizeof(float) + 1);
  std::memcpy(memory.data(), large.data(), large.size());
  const Model model = Model::in_memory(memory.data(), large.size());
  EXPECT_TRUE(model.has(0));

  const std::string wide = changed([](auto& f) {
    constexpr int64_t kElements = int64_t{1} << 30;
    for (auto& network : f.networks) {
      network.table.clear();
      network.plan.values = {{{kElements}, plan::Memory::kInput},
                             {{kElements}, plan::Memory::kArena},
                             {{kElements}, plan::Memory::kOutput}};
      network.plan.steps.resize(2);
      for (size_t i = 0; i < 2; ++i) {
        network.plan.steps[i] = {"", plan::Apply{kElements, plan::Function::kRelu}, {i}, i + 1};
      }
    }
  });
  write(folder / "wide", wide);
  EXPECT_THROW(Session(Model::open(folder / "wide"), {1, 1, {}}), std::bad_alloc);
}
#endif

}  // namespace
}  // namespace nsn::test
