#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "support.h"

// Checkpoints loaded in part: the order of tensors in the file, what is read and what becomes
// resident, the rest added in place, cut files, older versions.

namespace nsn::test {
namespace {

std::string contents_of(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

void put(const std::string& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

size_t header_bytes(const std::string& contents) {
  uint64_t length = 0;
  std::memcpy(&length, contents.data(), sizeof length);
  return sizeof length + length;
}

/// The bytes of what a sub-network uses of parameters and buffers.
size_t own_bytes(const Network& net, const std::string& name) {
  const Description& description = net->description();
  size_t bytes = 0;
  for (size_t p = 0; p < description.parameters().size(); ++p) {
    for (const auto& user : description.users_of(p)) {
      if (description.subnetworks()[user.subnetwork].name != name) continue;
      const Shape kept = kept_shape(*user.slice);
      bytes += c10::multiply_integers(kept) * net->parameter_table()[p].element_size();
    }
  }
  return bytes;
}

/// The paper's network, of that width.
NetworkOptions chain(int64_t width, at::ScalarType dtype = at::kFloat) {
  const auto hidden = DenseOptions(width, width).activation(torch::kReLU).dropout(0.5);
  return NetworkOptions()
      .input({width}, dtype)
      .block("hidden1", hidden)
      .block("hidden2", hidden)
      .block("output", DenseOptions(width, 10))
      .subnetwork("sub1", SubnetworkOptions({"hidden2", "output"}))
      .subnetwork("sub2", SubnetworkOptions({"output"}))
      .merge(merge::two_smallest_mean());
}

/// Sub-networks that keep parts of blocks, parts of their own, and statistics.
NetworkOptions narrowing(int64_t width) {
  return NetworkOptions()
      .input({width})
      .block("norm", BatchNormOptions(width).per_subnetwork({"statistics"}))
      .block("a", DenseOptions(width, width).activation(torch::kReLU).per_subnetwork({"bias"}))
      .block("b", DenseOptions(width, width).activation(Activation(torch::kTanh)))
      .block("exit", DenseOptions(width / 2, 3))
      .block("output", DenseOptions(width, 3))
      .subnetwork("base", SubnetworkOptions({"norm", "a", "b", "output"}))
      .subnetwork("half",
                  SubnetworkOptions({"norm", "a", "b", "output"}).width("a", 0.5).width("b", 0.5))
      .subnetwork("thin", SubnetworkOptions({"norm", "a", "b", "output"}).width("a", 2))
      .subnetwork("early", SubnetworkOptions({"a", "exit"}).width("a", 0.5));
}

/// A saved network, its file, and the file's removal.
struct Saved {
  explicit Saved(const NetworkOptions& options, const std::string& name)
      : path(temporary_path(name)) {
    torch::manual_seed(1);
    net = Network(options);
    Shape batch = net->description().input();
    batch.insert(batch.begin(), 8);
    net->joint(at::rand(batch, net->description().dtype()));  // makes statistics
    net->eval();
    save(net, path);
    contents = contents_of(path);
  }
  ~Saved() { std::filesystem::remove(path); }
  Saved(const Saved&) = delete;
  Saved& operator=(const Saved&) = delete;

  std::string path, contents;
  Network net{nullptr};
};

/// Expects that both compute the same bits for a sub-network.
void expect_same_outputs(const Network& actual, const Network& expected, const std::string& name) {
  Shape batch = expected->description().input();
  batch.insert(batch.begin(), 3);
  const at::Tensor x = at::rand(batch, expected->description().dtype());
  expect_same_bits(actual->view(name)(x), expected->view(name)(x), name);
}

TEST(Partial, AChainLiesAsPrefixesInTheFile) {
  const Saved saved(chain(12), "chain.safetensors");
  const std::string cut = temporary_path("cut.safetensors");
  for (const std::string name : {"sub2", "sub1", "base"}) {
    SCOPED_TRACE(name);
    const size_t prefix = header_bytes(saved.contents) + own_bytes(saved.net, name);
    put(cut, saved.contents.substr(0, prefix));
    expect_same_outputs(load_only(cut, name), saved.net, name);
    put(cut, saved.contents.substr(0, prefix - 1));
    expect_throws_with([&] { load_only(cut, name); }, {"sub-network '" + name, "truncated"});
  }
  EXPECT_EQ(saved.contents.size(), header_bytes(saved.contents) + own_bytes(saved.net, "base"));
  std::filesystem::remove(cut);
}

TEST(Partial, ReadsTheHeaderAndItsOwnBytesOnly) {
  const Saved saved(chain(12), "bytes.safetensors");
  for (const std::string name : {"sub2", "sub1", "base"}) {
    Network part = load_only(saved.path, name);
    EXPECT_EQ(part->load_report().bytes_read,
              header_bytes(saved.contents) + own_bytes(saved.net, name))
        << name;
  }
  EXPECT_EQ(load(saved.path)->load_report().bytes_read, saved.contents.size());
  EXPECT_EQ(saved.net->load_report().bytes_read, 0U);
  // The rest is what was not read before, and the header once more.
  Network part = load_only(saved.path, "sub2");
  load_rest(part, saved.path, "sub1");
  load_rest(part, saved.path);
  EXPECT_EQ(part->load_report().bytes_read,
            saved.contents.size() + 2 * header_bytes(saved.contents));
}

TEST(Partial, ReadsRowsOfWideMatricesOneByOne) {
  // Of each row of 4096 floats the leading half: what lies between is more than a page.
  const Saved saved(NetworkOptions()
                        .input({4})
                        .block("a", DenseOptions(4, 4096))
                        .block("b", DenseOptions(4096, 16))
                        .subnetwork("half", SubnetworkOptions({"a", "b"}).width("a", 0.5)),
                    "rows.safetensors");
  Network part = load_only(saved.path, "half");
  EXPECT_EQ(part->load_report().bytes_read,
            header_bytes(saved.contents) + own_bytes(saved.net, "half"));
  expect_same_outputs(part, saved.net, "half");
  load_rest(part, saved.path);
  expect_same_outputs(part, saved.net, "base");
}

TEST(Partial, EachSubnetworkComputesTheSame) {
  const Saved saved(narrowing(12), "narrowing.safetensors");
  for (const std::string& name : saved.net->description().names()) {
    SCOPED_TRACE(name);
    Network part = load_only(saved.path, name);
    part->eval();
    const auto there = part->loaded();
    EXPECT_NE(std::find(there.begin(), there.end(), name), there.end());
    for (const std::string& each : there) expect_same_outputs(part, saved.net, each);
    for (const std::string& more : saved.net->description().names()) {
      load_rest(part, saved.path, more);
      expect_same_outputs(part, saved.net, more);
      expect_same_outputs(part, saved.net, name);
    }
    EXPECT_EQ(part->loaded(), saved.net->description().names());
    const auto own = part->parameter_table().tensors(),
               whole = saved.net->parameter_table().tensors();
    for (size_t i = 0; i < own.size(); ++i) {
      expect_same_bits(own[i], whole[i], saved.net->description().parameters()[i].name);
    }
  }
}

TEST(Partial, RandomNetworks) {
  const std::string path = temporary_path("random.safetensors");
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Case test = random_case(seed, "mean");
    save(test.net, path);
    for (const std::string& name : test.net->description().names()) {
      Network part = load_only(path, name);
      expect_same_bits(part->view(name)(test.x), test.net->view(name)(test.x), name);
      load_rest(part, path);
      for (const std::string& each : test.net->description().names()) {
        expect_same_bits(part->view(each)(test.x), test.net->view(each)(test.x), each);
      }
    }
  }
  std::filesystem::remove(path);
}

TEST(Partial, KnowsWhatItHas) {
  const Saved saved(chain(12), "loaded.safetensors");
  using Names = std::vector<std::string>;
  EXPECT_EQ(saved.net->loaded(), Names({"base", "sub1", "sub2"}));
  EXPECT_EQ(load_only(saved.path, "sub2")->loaded(), Names({"sub2"}));
  EXPECT_EQ(load_only(saved.path, "sub1")->loaded(), Names({"sub1", "sub2"}));
  EXPECT_EQ(load_only(saved.path, "base")->loaded(), Names({"base", "sub1", "sub2"}));
  expect_throws_with([&] { load_only(saved.path, "sub3"); }, {"'sub3'", "'sub1'"});
  // One that keeps other parts does not have this one's.
  const Saved other(narrowing(12), "other.safetensors");
  EXPECT_EQ(load_only(other.path, "half")->loaded(), Names({"half"}));
  EXPECT_EQ(load_only(other.path, "base")->loaded(), Names({"base"}));
}

TEST(Partial, RefusesWhatIsNotThere) {
  const Saved saved(chain(12), "absent.safetensors");
  Network part = load_only(saved.path, "sub2");
  const at::Tensor x = at::rand({2, 12});
  Network net = part;
  const std::vector<std::string> message = {"'base' was not loaded", "there are 'sub2'",
                                            "load_rest"};
  expect_throws_with([&] { net->forward(x); }, message);
  expect_throws_with([&] { net->joint(x); }, message);
  expect_throws_with([&] { net->joint(x, {"sub2", "base"}); }, message);
  expect_throws_with([&] { net->view("base"); }, message);
  expect_throws_with([&] { recalibrate(net, {x}); }, message);
  expect_throws_with([&] { extract(net, "base"); }, message);
  const std::string other = temporary_path("not_written.safetensors");
  expect_throws_with([&] { save(net, other); }, message);
  EXPECT_FALSE(std::filesystem::exists(other));
  EXPECT_EQ(net->forward(x, "sub2").sizes(), at::IntArrayRef({2, 10}));
}

TEST(Partial, TheRestComesInPlaceAndLeavesTheTrainedPartAlone) {
  const Saved saved(narrowing(12), "in_place.safetensors");
  Network part = load_only(saved.path, "thin");
  part->eval();
  const View view = part->view("thin");
  const auto before = part->parameter_table();
  {
    const at::NoGradGuard no_grad;
    for (const at::Tensor& parameter : view.parameters()) parameter.add_(1.0);
  }
  const at::Tensor x = at::rand({3, 12}), trained = view(x);
  load_rest(part, saved.path);
  EXPECT_FALSE(view.stale());
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(before[i].data_ptr(), part->parameter_table()[i].data_ptr());
  }
  expect_same_bits(view(x), trained);
  expect_same_bits(part->view("thin")(x), trained);
  {
    const at::NoGradGuard no_grad;
    for (const at::Tensor& parameter : view.parameters()) parameter.sub_(1.0);
  }
  for (const std::string& name : part->loaded()) {
    expect_close(part->view(name)(x), saved.net->view(name)(x), 1e-5, name);
  }
}

TEST(Partial, ViewsRunWhileTheRestComes) {
  const Saved saved(chain(256), "meanwhile.safetensors");
  Network part = load_only(saved.path, "sub2");
  const View view = part->view("sub2");
  const at::Tensor x = at::rand({3, 256}), expected = view(x);
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done) expect_same_bits(view(x), expected);
  });
  load_rest(part, saved.path, "sub1");
  load_rest(part, saved.path);
  done = true;
  reader.join();
  expect_same_outputs(part, saved.net, "base");
}

TEST(Partial, RefusesAnotherFileForTheRest) {
  const Saved saved(chain(12), "first.safetensors"), other(chain(14), "second.safetensors");
  Network part = load_only(saved.path, "sub2");
  expect_throws_with([&] { load_rest(part, other.path); }, {"another description", "came from"});
  expect_throws_with([&] { load_rest(part, saved.path, "sub3"); }, {"'sub3'"});
  const std::string cut = temporary_path("shorter.safetensors");
  put(cut, saved.contents.substr(0, saved.contents.size() - 1));
  expect_throws_with([&] { load_rest(part, cut); }, {"'base' needs", "truncated"});
  EXPECT_EQ(part->loaded(), std::vector<std::string>({"sub2"}));
  load_rest(part, cut, "sub1");
  expect_same_outputs(part, saved.net, "sub1");
  std::filesystem::remove(cut);
  part->to(at::kDouble);
  expect_throws_with([&] { load_rest(part, saved.path); }, {"'hidden1.weight'", "Float", "before"});
}

TEST(Partial, ClonesLackTheSame) {
  const Saved saved(chain(12), "clone.safetensors");
  const auto clone = std::dynamic_pointer_cast<NetworkImpl>(load_only(saved.path, "sub2")->clone());
  Network copy(clone);
  EXPECT_EQ(copy->loaded(), std::vector<std::string>({"sub2"}));
  expect_same_outputs(copy, saved.net, "sub2");
  load_rest(copy, saved.path);
  expect_same_outputs(copy, saved.net, "base");
}

TEST(Partial, ACutFileSaysWhatIsWholeInIt) {
  const Saved saved(chain(12), "whole.safetensors");
  const std::string cut = temporary_path("part.safetensors");
  put(cut, saved.contents.substr(0, saved.contents.size() - 1));
  expect_throws_with([&] { load(cut); },
                     {"truncated", "Whole in it are 'sub1', 'sub2'", "load_only"});
  put(cut, saved.contents.substr(0, header_bytes(saved.contents)));
  expect_throws_with([&] { load(cut); }, {"truncated", "No sub-network is whole"});
  std::filesystem::remove(cut);
}

/// How many bytes of a tensor's pages take memory.
size_t resident_bytes(const at::Tensor& tensor) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr()) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(tensor.data_ptr()) + tensor.nbytes();
  std::vector<unsigned char> pages((end - begin + page - 1) / page);
  if (::mincore(reinterpret_cast<void*>(begin), end - begin, pages.data()) != 0) return 0;
  return page * static_cast<size_t>(std::count_if(pages.begin(), pages.end(),
                                                  [](auto each) { return (each & 1U) != 0; }));
}

TEST(Partial, WhatWasNotReadTakesNoMemory) {
  const Saved saved(chain(1024), "resident.safetensors");
  Network part = load_only(saved.path, "sub2");
  part->view("sub2")(at::rand({2, 1024}));
  size_t resident = 0;
  for (const at::Tensor& tensor : part->parameter_table()) resident += resident_bytes(tensor);
  EXPECT_GE(resident, own_bytes(saved.net, "sub2"));
  EXPECT_LE(resident, own_bytes(saved.net, "sub2") + size_t{8} * 4096);
  load_rest(part, saved.path);
  resident = 0;
  for (const at::Tensor& tensor : part->parameter_table()) resident += resident_bytes(tensor);
  EXPECT_GE(resident, own_bytes(saved.net, "base"));
}

TEST(Partial, MemoryLastsAsLongAsATensorOfIt) {
  const Saved saved(chain(12), "lasts.safetensors");
  at::Tensor weight;
  {
    Network part = load_only(saved.path, "sub2");
    weight = part->parameter_table()[4];
  }
  expect_same_bits(weight, saved.net->parameter_table()[4]);
}

TEST(Partial, AFileThatIsCutMeanwhileIsAnError) {
  const Saved saved(chain(64), "shrinks.safetensors");
  std::atomic<bool> done{false};
  std::thread cutter([&] {
    size_t length = saved.contents.size();
    while (!done) {
      std::filesystem::resize_file(saved.path, length);
      length = length > 4096 ? length / 2 : saved.contents.size();
    }
  });
  for (int i = 0; i < 300; ++i) {
    try {
      load_rest(load_only(saved.path, "sub1"), saved.path);
    } catch (const c10::ValueError&) {
    }
  }
  done = true;
  cutter.join();
}

std::vector<double> numbers(const std::string& text) {
  std::istringstream stream(text);
  return {std::istream_iterator<double>(stream), {}};
}

TEST(CheckpointVersions, OlderOnesLoad) {
  const std::string path = std::string(NSN_TEST_DATA) + "/version1.safetensors";
  const Metadata metadata = read_metadata(path);
  Network net = load(path);
  net->eval();
  const at::Tensor x = at::tensor(numbers(metadata.at("x")), at::kFloat).view({2, 6});
  for (const std::string& name : net->description().names()) {
    const at::Tensor expected = at::tensor(numbers(metadata.at(name)), at::kFloat).view({2, 3});
    expect_close(net->view(name)(x), expected, 1e-6, name);
    expect_close(load_only(path, name)->view(name)(x), expected, 1e-6, name);
  }
}

TEST(CheckpointVersions, NewerOnesAreRefused) {
  const Saved saved(chain(4), "version.safetensors");
  std::string contents = saved.contents;
  const std::string key = "\"nsn_format\":\"2\"";
  const size_t place = contents.find(key);
  ASSERT_NE(place, std::string::npos);
  for (const char version : {'3', 'x'}) {
    contents[place + key.size() - 2] = version;
    put(saved.path, contents);
    const std::vector<std::string> message = {std::string("version '") + version, "reads up to 2"};
    expect_throws_with([&] { load(saved.path); }, message);
    expect_throws_with([&] { load_only(saved.path, "sub2"); }, message);
    expect_throws_with([&] { load_rest(saved.net, saved.path); }, message);
    expect_throws_with([&] { read_metadata(saved.path); }, message);
  }
  expect_throws_with([&] { save(saved.net, saved.path, {{"nsn_format", "2"}}); },
                     {"'nsn_format'", "library's own"});
}

}  // namespace
}  // namespace nsn::test
