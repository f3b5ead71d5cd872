#include <sstream>
#include <thread>

#include "support.h"

namespace nsn::test {
namespace {

Network network(at::ScalarType dtype = at::kFloat) {
  torch::manual_seed(5);
  return Network(small_options(merge::mean(), 0.5, dtype));
}

TEST(Pack, GivesWhatViewsGive) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    const Network net = network(dtype);
    const Pack pack(net);
    for (const int64_t batch : {1, 3, 8, 70}) {
      const at::Tensor x = at::randn({batch, 5}, dtype);
      for (const std::string name : {"base", "sub1", "sub2"}) {
        EXPECT_EQ(pack.view(name).name(), name);
        expect_close(pack.view(name)(x), net->view(name)(x), dtype == at::kFloat ? 1e-6 : 1e-14,
                     name);
      }
    }
  }
}

TEST(Pack, RandomNetworks) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const Case test = random_case(seed, "mean");
    const Pack pack(test.net);
    for (const std::string& name : test.net->description().names()) {
      expect_close(pack.view(name)(test.x), test.net->view(name)(test.x), 1e-12,
                   "seed " + std::to_string(seed) + ", " + name);
    }
  }
}

TEST(Pack, IsASnapshotUntilItIsRefreshed) {
  Network net = network();
  Pack pack(net);
  const PackedView view = pack.view("sub1");
  const at::Tensor x = at::randn({3, 5});
  const at::Tensor before = view(x);
  EXPECT_FALSE(pack.stale());
  {
    const at::NoGradGuard no_grad;
    net->named_parameters()["output.weight"].add_(1.0);
  }
  EXPECT_TRUE(view.stale());
  expect_same_bits(view(x), before);
  pack.refresh();
  EXPECT_FALSE(view.stale());
  expect_close(view(x), net->view("sub1")(x), 1e-6);
  EXPECT_FALSE(view(x).equal(before));
}

TEST(Pack, OutlivesItsNetwork) {
  std::optional<Pack> pack;
  const at::Tensor x = at::randn({3, 5});
  at::Tensor expected;
  {
    const Network net = network();
    pack.emplace(net);
    expected = net->view("base")(x);
  }
  expect_close(pack->view("base")(x), expected, 1e-6);
  EXPECT_FALSE(pack->stale());
  expect_throws_with([&] { pack->refresh(); }, {"nsn::Pack: the network", "is gone", "Keep"});
}

TEST(Pack, SharesWhatSubnetworksShareAndShowsIt) {
  const Network net = network();
  const Pack pack(net);
  int64_t sum = 0;
  for (const Pack::Entry& entry : pack.entries()) {
    sum += entry.bytes;
    if (entry.parameter != "output.weight") continue;
    EXPECT_EQ(entry.form, "product");
    EXPECT_EQ(entry.shape, (Shape{3, 5}));
    EXPECT_EQ(entry.bytes, 16 * 5 * 4);  // 3 rows are filled up to 16
    EXPECT_EQ(entry.subnetworks, (std::vector<std::string>{"base", "sub1", "sub2"}));
  }
  EXPECT_EQ(pack.bytes(), sum);
  EXPECT_EQ(pack.entries().size(), 6U);
  EXPECT_EQ(Pack(net, {"sub2"}).entries().size(), 2U);
  std::ostringstream text;
  text << pack.entries();
  EXPECT_NE(text.str().find("hidden2.bias"), std::string::npos);
  EXPECT_NE(text.str().find(std::to_string(sum)), std::string::npos);
}

TEST(Pack, WrappedModulesBelongToTheSnapshot) {
  torch::manual_seed(2);
  torch::nn::Linear module(5, 5);
  const Network net(NetworkOptions()
                        .input({5})
                        .block("own", WrappedOptions("Mine", module))
                        .block("output", DenseOptions(5, 3))
                        .subnetwork("small", SubnetworkOptions({"output"})));
  const Pack pack(net);
  const at::Tensor x = at::randn({4, 5});
  const at::Tensor before = net->view("base")(x);
  expect_close(pack.view("base")(x), before, 1e-6);
  {
    const at::NoGradGuard no_grad;
    module->weight.mul_(2);
  }
  EXPECT_TRUE(pack.stale());
  expect_close(pack.view("base")(x), before, 1e-6);
  EXPECT_FALSE(net->view("base")(x).allclose(before));
}

/// A block of one's own, which reads its parameter as it is.
struct Stretch : Block {
  std::string type() const override { return "Stretch"; }
  std::vector<ParameterSpec> parameters() const override { return {{"factor", {5}}}; }
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& /*lane*/,
                     const BlockPass& /*pass*/) const override {
    return x * parameters[0];
  }
};

TEST(Pack, BlocksOfOnesOwnReadCopies) {
  Network net(NetworkOptions()
                  .input({5})
                  .block("stretch", std::make_shared<const Stretch>())
                  .block("output", DenseOptions(5, 3)));
  const Pack pack(net);
  const at::Tensor x = at::randn({4, 5});
  const at::Tensor before = pack.view("base")(x);
  expect_close(before, net->view("base")(x), 1e-6);
  const at::NoGradGuard no_grad;
  net->named_parameters()["stretch.factor"].add_(1.0);
  expect_same_bits(pack.view("base")(x), before);
  EXPECT_TRUE(pack.stale());
}

/// A block of one's own that runs a packed view, on the thread and in the midst of another's run.
struct Inner : Block {
  explicit Inner(PackedView inner) : view(std::move(inner)) {}
  std::string type() const override { return "Inner"; }
  at::Tensor forward(const at::Tensor& x, at::TensorList /*parameters*/, const LanePass& /*lane*/,
                     const BlockPass& /*pass*/) const override {
    return at::cat({view(x), x.narrow(1, 3, 2)}, 1);
  }
  PackedView view;
};

TEST(Pack, BlocksOfOnesOwnMayRunPacks) {
  const Network inner = network();
  const Pack inside(inner);
  const Network net(NetworkOptions()
                        .input({5})
                        .block("before", DenseOptions(5, 5).activation(torch::kTanh))
                        .block("inner", std::make_shared<const Inner>(inside.view("base")))
                        .block("relu", ActivationOptions(torch::kReLU))
                        .block("output", DenseOptions(5, 3)));
  const Pack pack(net);
  for (const int64_t batch : {1, 40}) {
    const at::Tensor x = at::randn({batch, 5});
    expect_close(pack.view("base")(x), net->view("base")(x), 1e-6);
  }
}

TEST(Pack, BlocksOfOnesOwnGetWhatTheirProgramSays) {
  torch::manual_seed(1);
  const auto own = [](int64_t in) {
    return WrappedOptions("Mine",
                          torch::nn::Sequential(torch::nn::Flatten(), torch::nn::Linear(in, 4)));
  };
  const std::vector<Network> networks{
      Network(NetworkOptions()
                  .input({2, 3})
                  .block("flat", FlattenOptions())
                  .block("own", WrappedOptions("Linear", torch::nn::Linear(6, 4)))),
      Network(NetworkOptions()
                  .input({2, 5, 5})
                  .block("conv", Conv2dOptions(2, 1, 3))
                  .block("own", own(9))),
      Network(NetworkOptions()
                  .input({2, 5, 4})
                  .block("conv", Conv2dOptions(2, 3, 3).padding(1))
                  .block("own", own(60))),
  };
  for (const Network& net : networks) {
    auto shape = net->description().input();
    shape.insert(shape.begin(), 7);
    const at::Tensor batch = at::randn(shape);
    expect_close(Pack(net).view("base")(batch), net->view("base")(batch), 1e-6);
  }
}

/// A block of one's own that does not do what its fit says, or throws.
struct Wrong : Block {
  explicit Wrong(int64_t kept) : features(kept) {}
  std::string type() const override { return "Wrong"; }
  at::Tensor forward(const at::Tensor& x, at::TensorList /*parameters*/, const LanePass& /*lane*/,
                     const BlockPass& /*pass*/) const override {
    if (features < 0) throw std::out_of_range("my own");
    return x.narrow(1, 0, features);
  }
  int64_t features;
};

TEST(Pack, WhatABlockOfOnesOwnDoesWrongIsSaid) {
  const auto net = [](int64_t features) {
    return Network(NetworkOptions()
                       .input({5})
                       .block("own", std::make_shared<const Wrong>(features))
                       .block("output", DenseOptions(5, 3)));
  };
  // One that would broadcast.
  const Pack narrow(net(1)), throws(net(-1)), right(net(5));
  const at::Tensor x = at::randn({4, 5});
  expect_throws_with([&] { narrow.view("base")(x); },
                     {"block 'own' must give a float32 output of shape (4, 5), but gave (4, 1)",
                      "Change its `fit`"});
  EXPECT_THROW(throws.view("base")(x), std::out_of_range);
  EXPECT_NO_THROW(right.view("base")(x));
}

TEST(Pack, RefusesWhatIsNotThere) {
  const Network net = network();
  expect_throws_with([&] { Pack(net, {"sub9"}); }, {"no sub-network 'sub9'"});
  const Pack pack(net, {"sub2"});
  expect_throws_with([&] { pack.view("base"); },
                     {"'base' is not in this pack, which has 'sub2'", "Name it when packing"});
}

}  // namespace
}  // namespace nsn::test
