// Networks as files of the runtime: what they hold, and what they refuse.

#include <nsn/runtime/session.h>

#include <filesystem>

#include "support.h"

namespace nsn::test {
namespace {

/// Where a test's file goes.
std::string runtime_path(const std::string& name) {
  return std::filesystem::path(testing::TempDir()) / ("nsn_" + name + ".nsnrt");
}

at::Tensor run_file(const std::string& path, const std::string& subnetwork, const at::Tensor& x) {
  const runtime::Model model = runtime::Model::open(path);
  const size_t place = model.index_of(subnetwork);
  std::vector<int64_t> shape{x.size(0)};
  const auto& own = model.subnetworks()[place].output;
  shape.insert(shape.end(), own.begin(), own.end());
  at::Tensor y = at::empty(shape);
  runtime::Session session(model, {x.size(0), 1, {}});
  EXPECT_EQ(session.run(place, x.const_data_ptr<float>(), y.mutable_data_ptr<float>(), x.size(0)),
            runtime::Status::kOk);
  return y;
}

TEST(RuntimeFileOf, ANetworkGivesWhatItsViewsGive) {
  torch::manual_seed(5);
  const Network net(small_options(merge::mean(), 0.5, at::kFloat));
  const std::string path = runtime_path("views");
  write_runtime(net, path);
  const at::Tensor x = at::randn({7, 5});
  for (const std::string& name : net->description().names()) {
    expect_close(run_file(path, name, x), net->view(name)(x), 1e-6, name);
  }
  // A file is of one moment, and one that is written again takes the place of the one before.
  const runtime::Model before = runtime::Model::open(path);
  {
    const at::NoGradGuard no_grad;
    net->named_parameters()["output.bias"].add_(1.0);
  }
  const at::Tensor is = net->view("base")(x);
  EXPECT_FALSE(run_file(path, "base", x).allclose(is, 1e-3));
  write_runtime(net, path, {"sub2", "base"});
  expect_close(run_file(path, "base", x), is, 1e-6);
  EXPECT_EQ(runtime::Model::open(path).subnetworks().size(), 2U);
  EXPECT_EQ(before.subnetworks().size(), 3U);
  std::filesystem::remove(path);
}

TEST(RuntimeFileOf, NarrowWeightsAreRoundedByRows) {
  torch::manual_seed(6);
  const Network net(small_options(merge::mean(), 0.5, at::kFloat));
  const Network rounded(small_options(merge::mean(), 0.5, at::kFloat));
  const at::Tensor x = at::randn({7, 5});
  const std::string path = runtime_path("narrow");
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16, at::kChar}) {
    write_runtime(net, path, {}, type);
    const at::NoGradGuard no_grad;
    for (const auto& item : net->named_parameters()) {
      at::Tensor to = rounded->named_parameters()[item.key()];
      to.copy_(item.value());
      if (item.value().dim() < 2) continue;
      const at::Tensor scale = item.value().abs().amax(1, true) / 127;
      to.copy_(type == at::kChar ? at::round(item.value() / scale) * scale
                                 : item.value().to(type).to(at::kFloat));
    }
    for (const std::string& name : net->description().names()) {
      expect_close(run_file(path, name, x), rounded->view(name)(x), 1e-6, name);
      EXPECT_FALSE(run_file(path, name, x).allclose(net->view(name)(x), 1e-5, 1e-5));
    }
  }
  expect_throws_with([&] { write_runtime(net, path, {}, at::kDouble); },
                     {"weights are held as Float, Half, BFloat16 or Char (int8)", "Double"});
  std::filesystem::remove(path);
}

TEST(RuntimeFileOf, ItsPackRunsWhereItLies) {
  torch::manual_seed(7);
  const std::string path = runtime_path("packed");
  const at::Tensor x = at::randn({9, 5});
  std::optional<PackedView> view;
  at::Tensor expected;
  {
    const Network net(small_options(merge::mean(), 0.5, at::kFloat));
    write_runtime(net, path);
    Pack pack = Pack::map(path);
    for (const std::string& name : net->description().names()) {
      expect_close(pack.view(name)(x), net->view(name)(x), 1e-6, name);
      EXPECT_TRUE(pack.view(name)(x).equal(run_file(path, name, x)));
    }
    EXPECT_FALSE(pack.stale());
    const runtime::Model model = runtime::Model::open(path);
    int64_t bytes = 0;
    for (const Pack::Entry& entry : pack.entries()) {
      EXPECT_FALSE(entry.subnetworks.empty());
      bytes += entry.bytes;
    }
    EXPECT_EQ(bytes, pack.bytes());
    EXPECT_GE(bytes, model.subnetworks()[0].weight_bytes);
    EXPECT_LE(bytes, static_cast<int64_t>(std::filesystem::file_size(path)));
    expect_throws_with([&] { pack.refresh(); }, {"mapped from a file", "Map the file"});
    expect_throws_with([&] { pack.view("none"); },
                       {"'none' is not in this pack, which has 'base'", "Map a file that has it"});
    view = pack.view("base");
    expected = (*view)(x);
  }
  // It needs neither the network nor the pack; its input is checked as a network's is.
  at::Tensor out = at::empty({9, 3});
  (*view)(x, out);
  EXPECT_TRUE(out.equal(expected));
  expect_throws_with([&] { (*view)(x.slice(1, 0, 4)); }, {"expected input of shape (B, 5)"});
  expect_throws_with([&] { (*view)(x.to(at::kLong)); }, {"expected input of dtype Float"});
  expect_throws_with([&] { (*view)(x.to(at::kDouble)); }, {"computes in float32"});
  // Of a file that ends early those that are there; of one that has none, none.
  const runtime::Model model = runtime::Model::open(path);
  const auto smallest =
      std::min_element(model.subnetworks().begin(), model.subnetworks().end(),
                       [](const auto& a, const auto& b) { return a.file_bytes < b.file_bytes; });
  const std::string part = runtime_path("part");
  std::filesystem::copy_file(path, part, std::filesystem::copy_options::overwrite_existing);
  std::filesystem::resize_file(part, static_cast<uintmax_t>(smallest->file_bytes));
  EXPECT_TRUE(Pack::map(part).view(smallest->name)(x).equal(run_file(path, smallest->name, x)));
  expect_throws_with([&] { Pack::map(part).view("base"); }, {"'base' is not in this pack"});
  std::filesystem::resize_file(part, static_cast<uintmax_t>(smallest->file_bytes) - 1);
  expect_throws_with([&] { Pack::map(part); }, {"ends before the weights of each"});
  expect_throws_with([&] { Pack::map("/nowhere"); }, {"'/nowhere' cannot be opened"});
  std::filesystem::remove(part);
  std::filesystem::remove(path);
}

/// A block of one's own.
struct Wave : Block {
  std::string type() const override { return "Wave"; }
  at::Tensor forward(const at::Tensor& x, at::TensorList /*parameters*/, const LanePass& /*lane*/,
                     const BlockPass& /*pass*/) const override {
    return x.sin();
  }
};

TEST(RuntimeFileOf, WhatAFileCannotHoldIsRefusedByName) {
  const std::string path = runtime_path("refused");
  std::filesystem::remove(path);
  const Network own(NetworkOptions()
                        .input({5})
                        .block("wave", std::make_shared<Wave>())
                        .block("output", DenseOptions(5, 3))
                        .subnetwork("small", SubnetworkOptions({"output"})));
  expect_throws_with([&] { write_runtime(own, path); },
                     {"nsn::write_runtime: block 'wave' of sub-network 'base' is not nsn's own",
                      "Leave the sub-network out"});
  EXPECT_FALSE(std::filesystem::exists(path));
  write_runtime(own, path, {"small"});
  const at::Tensor x = at::randn({2, 5});
  expect_close(run_file(path, "small", x), own->view("small")(x), 1e-6);

  const Network net(small_options(merge::mean(), 0.5, at::kDouble));
  expect_throws_with([&] { write_runtime(net, path); },
                     {"is of Double, but a runtime file holds float32", "to()"});
  expect_throws_with([&] { write_runtime(own, path, {"none"}); }, {"'none'"});
  // What was there is there.
  expect_close(run_file(path, "small", x), own->view("small")(x), 1e-6);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace nsn::test
