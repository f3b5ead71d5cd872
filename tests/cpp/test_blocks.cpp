#include <cmath>
#include <sstream>

#include "support.h"

// Blocks of one's own, wrapped modules, private parts, widths and statistics. (All built-in blocks
// against plain torch, at random: tests/python/test_elastic.py.)

namespace nsn::test {
namespace {

// -------------------------------------------------------------------------------------------------
// A block of one's own

/// y = x * factor, in less than thirty lines.
struct Stretch : Block {
  std::string type() const override { return "Stretch"; }
  std::vector<ParameterSpec> parameters() const override { return {{"factor", {4}}}; }
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& /*lane*/,
                     const BlockPass& /*pass*/) const override {
    return x * parameters[0];
  }
};

NetworkOptions stretched(const merge::Rule& rule) {
  return NetworkOptions()
      .input({4}, at::kDouble)
      .block("first", DenseOptions(4, 4).activation(torch::kTanh))
      .block("stretch", std::make_shared<const Stretch>())
      .block("last", DenseOptions(4, 2))
      .subnetwork("small", SubnetworkOptions({"stretch", "last"}))
      .merge(rule);
}

/// Gradients of one sub-network by plain operations on leaves of its own; `middle` is the block
/// under test.
std::vector<at::Tensor> plain_gradients(
    const Network& net, const at::Tensor& x, const std::string& name,
    const std::function<at::Tensor(const at::Tensor&, const std::vector<at::Tensor>&)>& middle) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& parameter : net->parameter_table()) {
    leaves.push_back(parameter.detach().clone().set_requires_grad(true));
  }
  at::Tensor y = x;
  if (name == "base") y = at::tanh(at::linear(y, leaves[0], leaves[1]));
  y = middle(y, {leaves.begin() + 2, leaves.end() - 2});
  y = at::linear(y, leaves[leaves.size() - 2], leaves.back());
  lane_loss(y, name == "base" ? 0 : 1).backward();
  std::vector<at::Tensor> gradients;
  for (const at::Tensor& leaf : leaves) gradients.push_back(leaf.grad());
  return gradients;
}

TEST(OwnBlock, MergesUnderAnyRule) {
  for (const std::string name : {"sum", "mean", "owner", "median"}) {
    SCOPED_TRACE(name);
    Random random(1);
    torch::manual_seed(2);
    Network net(stretched(make_rule(name, {"base", "small"}, random)));
    const at::Tensor x = at::randn({3, 4}, at::kDouble);
    const auto outputs = net->joint(x);
    (lane_loss(outputs["base"], 0) + lane_loss(outputs["small"], 1)).backward();
    const auto stretch = [](const at::Tensor& y, const std::vector<at::Tensor>& own) {
      return y * own[0];
    };
    const auto base = plain_gradients(net, x, "base", stretch);
    const auto small = plain_gradients(net, x, "small", stretch);
    const auto actual = take_gradients(net);
    const auto expected = merge_all_plainly(net->description(), {"base", "small"}, {base, small});
    for (size_t i = 0; i < actual.size(); ++i) {
      expect_close(actual[i], expected[i], 1e-12, std::to_string(i));
    }
  }
}

TEST(OwnBlock, IsLoadedByItsFactoryAndNamedWithout) {
  const std::string path = temporary_path("own.safetensors");
  Network net(stretched(merge::mean()));
  save(net, path);
  expect_throws_with([&] { load(path); },
                     {"'stretch'", "unknown type 'Stretch'", "'Dense'", "factory"});
  const Supplied supplied{.blocks = {{"Stretch", [](const std::string& options) -> BlockPtr {
                                        EXPECT_EQ(options, "{}");
                                        return std::make_shared<const Stretch>();
                                      }}}};
  Network again = load(path, supplied);
  const at::Tensor x = at::randn({3, 4}, at::kDouble);
  for (const std::string& name : net->description().names()) {
    expect_same_bits(again->view(name)(x), net->view(name)(x), name);
  }
  const Supplied none{.blocks = {{"Stretch", [](const std::string&) { return BlockPtr(); }}}};
  expect_throws_with([&] { load(path, none); }, {"'stretch'", "returned no block"});
}

TEST(OwnBlock, NeedsForwardOrJoint) {
  struct Nothing : Block {
    std::string type() const override { return "Nothing"; }
  };
  Network net(NetworkOptions().input({2}).block("a", std::make_shared<const Nothing>()));
  expect_throws_with<c10::Error>([&] { net->forward(at::ones({1, 2})); },
                                 {"Nothing", "neither forward nor joint"});
}

// -------------------------------------------------------------------------------------------------
// Wrapped modules

struct MixerImpl : torch::nn::Cloneable<MixerImpl> {
  MixerImpl() { reset(); }
  void reset() override {
    linear = register_module("linear", torch::nn::Linear(4, 4));
    linear->to(at::kDouble);
  }
  at::Tensor forward(const at::Tensor& x) { return at::sigmoid(linear(x)); }
  torch::nn::Linear linear{nullptr};
};
TORCH_MODULE(Mixer);

NetworkOptions mixed(const merge::Rule& rule, bool row_independent) {
  return NetworkOptions()
      .input({4}, at::kDouble)
      .block("first", DenseOptions(4, 4).activation(torch::kTanh))
      .block("mixer", WrappedOptions("Mixer", Mixer()).row_independent(row_independent))
      .block("last", DenseOptions(4, 2))
      .subnetwork("small", SubnetworkOptions({"mixer", "last"}))
      .merge(rule);
}

TEST(Wrapped, ObeysLinearRules) {
  const auto weighted = [](double base, double small) {
    return merge::weighted({{"base", base}, {"small", small}});
  };
  for (const bool row_independent : {false, true}) {
    for (const merge::Rule& rule :
         {merge::sum(), merge::mean(), merge::owner(), merge::two_smallest_mean(),
          weighted(0.5, 3.0), weighted(0.0, 2.0), weighted(0.0, 0.0)}) {
      SCOPED_TRACE(rule.name() + (row_independent ? ", stacked" : ""));
      torch::manual_seed(2);
      Network net(mixed(rule, row_independent));
      EXPECT_EQ(net->description().parameter_names()[2], "mixer.linear.weight");
      const at::Tensor x = at::randn({3, 4}, at::kDouble).set_requires_grad(true);
      const auto outputs = net->joint(x);
      (lane_loss(outputs["base"], 0) + lane_loss(outputs["small"], 1)).backward();
      const auto mix = [](const at::Tensor& y, const std::vector<at::Tensor>& own) {
        return at::sigmoid(at::linear(y, own[0], own[1]));
      };
      const at::Tensor own_x = x.detach().clone().set_requires_grad(true);
      const auto base = plain_gradients(net, own_x, "base", mix);
      const auto small = plain_gradients(net, own_x, "small", mix);
      const auto actual = take_gradients(net);
      auto expected = merge_all_plainly(net->description(), {"base", "small"}, {base, small});
      for (size_t i = 0; i < actual.size(); ++i) {
        // A module none of whose lanes counts takes no part, rather than getting zeros.
        if (!actual[i].defined() && (i == 2 || i == 3)) {
          EXPECT_EQ(expected[i].abs().max().item<double>(), 0.0);
          continue;
        }
        expect_close(actual[i], expected[i], 1e-12, std::to_string(i));
      }
      expect_close(x.grad(), own_x.grad(), 1e-12, "the input's gradient is unmerged");
    }
  }
}

TEST(Wrapped, RefusesWhatItCannotObey) {
  Random random(1);
  expect_throws_with([&] { Network(mixed(make_rule("median", {}, random), false)); },
                     {"'mixer'", "(Mixer)", "'median'", "cannot be split", "merge::mean()"});
  // A rule of its own helps.
  const auto median = make_rule("median", {}, random);
  Network net(NetworkOptions()
                  .input({4}, at::kDouble)
                  .block("mixer", WrappedOptions("Mixer", Mixer()), merge::mean())
                  .merge(median));
  expect_throws_with(
      [&] {
        Network(NetworkOptions().input({5}, at::kDouble).block("m", WrappedOptions("M", Mixer())));
      },
      {"'m' (M)", "its module takes", "(5)"});
}

struct InPlaceImpl : torch::nn::Cloneable<InPlaceImpl> {
  InPlaceImpl() = default;
  void reset() override {}
  at::Tensor forward(at::Tensor x) { return x.mul_(2); }
};
TORCH_MODULE(InPlace);

TEST(Wrapped, NoticesWorkInPlace) {
  expect_throws_with(
      [] {
        Network(NetworkOptions()
                    .input({2})
                    .block("a", DenseOptions(2, 2))
                    .block("b", WrappedOptions("InPlace", InPlace())));
      },
      {"'b' (InPlace)", "in place", "copy"});
}

TEST(Wrapped, ViewsEvaluateWhateverTheModulesModeIs) {
  torch::manual_seed(1);
  torch::nn::Sequential module(torch::nn::Linear(4, 4), torch::nn::Dropout(0.9));
  Network net(NetworkOptions()
                  .input({4})
                  .block("a", DenseOptions(4, 4))
                  .block("b", WrappedOptions("Sequential", torch::nn::Dropout(0.9))));
  net->train();
  const View view = net->view("base");
  const at::Tensor x = at::randn({8, 4});
  expect_same_bits(view(x), view(x));
  EXPECT_TRUE(net->is_training());
  EXPECT_FALSE(view(x).eq(0).any().item<bool>());
  EXPECT_TRUE(net->forward(x).eq(0).any().item<bool>());
  net->eval();
  expect_same_bits(net->forward(x).detach(), view(x));
}

TEST(Wrapped, ClonesAndFilesHaveTheModulesValues) {
  torch::manual_seed(1);
  Network net(mixed(merge::mean(), true));
  const at::Tensor x = at::randn({3, 4}, at::kDouble);
  const auto expected = net->view("small")(x);
  auto copy = std::dynamic_pointer_cast<NetworkImpl>(net->clone());
  const std::string path = temporary_path("wrapped.safetensors");
  save(net, path);
  const Supplied supplied{.blocks = {{"Mixer", [](const std::string&) -> BlockPtr {
                                        return WrappedOptions("Mixer", Mixer());
                                      }}}};
  Network again = load(path, supplied);
  {
    const torch::NoGradGuard no_grad;
    for (const at::Tensor& parameter : net->parameters()) parameter.zero_();
  }
  expect_same_bits(copy->view("small")(x), expected);
  expect_same_bits(again->view("small")(x), expected);
}

// -------------------------------------------------------------------------------------------------
// Widths

Network narrowed(const merge::Rule& rule) {
  return Network(
      NetworkOptions()
          .input({6}, at::kDouble)
          .block("a", DenseOptions(6, 8).activation(torch::kReLU))
          .block("b", DenseOptions(8, 8).activation(kSwiGLU))
          .block("c", DenseOptions(8, 3))
          .subnetwork("half", SubnetworkOptions({"a", "b", "c"}).width("a", 0.5).width("b", 4))
          .subnetwork("thin", SubnetworkOptions({"a", "b", "c"}).width("b", "out", 1))
          .merge(rule));
}

TEST(Width, NarrowLanesLeaveTheRestAlone) {
  Network net = narrowed(merge::mean());
  lane_loss(net->joint(at::randn({5, 6}, at::kDouble), {"half"})["half"], 0).backward();
  const auto gradients = take_gradients(net);
  const auto zero_beyond = [&](size_t place, int64_t dim, int64_t kept) {
    const at::Tensor& gradient = gradients[place];
    EXPECT_EQ(gradient.narrow(dim, kept, gradient.size(dim) - kept).abs().max().item<double>(), 0);
    EXPECT_GT(gradient.narrow(dim, 0, kept).abs().max().item<double>(), 0);
  };
  zero_beyond(0, 0, 4);
  zero_beyond(1, 0, 4);
  zero_beyond(2, 1, 4);
  zero_beyond(4, 1, 4);
  // Of each of the two halves, value and gate.
  zero_beyond(2, 0, 12);
  EXPECT_EQ(gradients[2].narrow(0, 4, 4).abs().max().item<double>(), 0);
  EXPECT_GT(gradients[2].narrow(0, 8, 4).abs().max().item<double>(), 0);
}

TEST(Width, ViewsShareTheStorage) {
  Network net = narrowed(merge::mean());
  const auto parameters = net->view("half").parameters();
  const auto table = net->parameter_table().tensors();
  ASSERT_EQ(parameters.size(), table.size());
  for (size_t i = 0; i < table.size(); ++i)
    EXPECT_EQ(parameters[i].data_ptr(), table[i].data_ptr());
  EXPECT_EQ(parameters[0].sizes(), at::IntArrayRef({4, 6}));
  EXPECT_EQ(parameters[2].sizes(), at::IntArrayRef({2, 4, 4}));
}

TEST(Width, AloneIsTheSameNetwork) {
  Network net = narrowed(merge::mean());
  const at::Tensor x = at::randn({5, 6}, at::kDouble);
  for (const std::string& name : net->description().names()) {
    const Description description = net->description().alone(name);
    EXPECT_EQ(description.names(), std::vector<std::string>{"base"});
    EXPECT_EQ(description.parameter_count(), net->description().subnetwork(name)->parameter_count);
    std::vector<at::Tensor> own;
    for (const at::Tensor& parameter : net->view(name).parameters())
      own.push_back(parameter.clone());
    for (size_t i = 0; i < own.size(); ++i) {
      own[i] = own[i].reshape(description.parameters()[i].shape);
    }
    const Network alone(std::make_shared<NetworkImpl>(description, own));
    expect_close(alone->view("base")(x), net->view(name)(x), 1e-13, name);
  }
}

TEST(Width, SaysWhatIsWrong) {
  const auto with = [](const SubnetworkOptions& half) {
    return [half] {
      Description(NetworkOptions()
                      .input({4})
                      .block("a", DenseOptions(4, 8))
                      .block("t", ActivationOptions())
                      .block("b", DenseOptions(8, 2))
                      .subnetwork("half", half));
    };
  };
  const SubnetworkOptions all({"a", "t", "b"});
  expect_throws_with(with(SubnetworkOptions(all).width("a", 9)),
                     {"'half'", "'out' of block 'a'", "from 1 to 8", "got 9"});
  expect_throws_with(with(SubnetworkOptions(all).width("a", 1.5)), {"fraction above 0", "1.5"});
  expect_throws_with(with(SubnetworkOptions(all).width("a", "in", 2)),
                     {"no dimension 'in'", "'out'"});
  expect_throws_with(with(SubnetworkOptions(all).width("t", 2)), {"'t'", "none of its own"});
  expect_throws_with(with(SubnetworkOptions(all).width("c", 2)), {"'c'", "does not keep"});
  expect_throws_with(with(SubnetworkOptions(all).width("a", 2).width("a", 3)), {"set twice"});
  expect_throws_with(
      [] {
        Description(NetworkOptions()
                        .input({4})
                        .block("a", DenseOptions(4, 8))
                        .subnetwork("base", SubnetworkOptions({"a"}).width("a", 4)));
      },
      {"narrowed", "base is at full width"});
  expect_throws_with(
      [] {
        Description(NetworkOptions()
                        .input({8, 5})
                        .block("a", Conv1dOptions(8, 6, 1))
                        .block("g", Conv1dOptions(6, 6, 1).groups(3))
                        .subnetwork("odd", SubnetworkOptions({"a", "g"}).width("a", 3)));
      },
      {"'odd'", "'g' (Conv1d)", "whole groups", "3 of 6"});
}

TEST(Width, FractionsMeanTheNearestCount) {
  const auto kept = [](double fraction) {
    const Description description(
        NetworkOptions()
            .input({4})
            .block("a", DenseOptions(4, 5))
            .subnetwork("s", SubnetworkOptions({"a"}).width("a", "out", fraction)));
    return description.subnetwork("s")->output[0];
  };
  EXPECT_EQ(kept(0.01), 1);
  EXPECT_EQ(kept(0.5), 3);  // 2.5, upwards
  EXPECT_EQ(kept(0.49), 2);
  EXPECT_EQ(kept(1.0), 5);
}

/// The output of a sub-network, and how much it keeps of a block's dimension.
struct Kept {
  Shape output;
  std::map<std::string, std::map<std::string, int64_t>> widths;
};
Kept kept(const NetworkOptions& options, const std::string& name) {
  const Description description(options);
  const auto held = description.subnetwork(name);
  const Description::Subnetwork& subnetwork = *held;
  Kept result{subnetwork.output, {}};
  for (const size_t i : c10::irange(subnetwork.blocks.size())) {
    result.widths[description.blocks()[subnetwork.blocks[i]].name] = subnetwork.fits[i].use.width;
  }
  EXPECT_EQ(Description::from_json(description.to_json()), description);
  return result;
}

TEST(Width, OfAWholeSubnetworkNarrowsAllButItsOutput) {
  const auto dense = [](int64_t in, int64_t out) { return DenseOptions(in, out); };
  const auto mlp = NetworkOptions()
                       .input({4})
                       .block("a", dense(4, 8))
                       .block("b", dense(8, 8))
                       .block("output", dense(8, 3));
  NetworkOptions own = mlp;
  own.subnetwork("half", SubnetworkOptions().width(0.5))
      .subnetwork("early", SubnetworkOptions({"a", "output"}).width(0.75))
      .subnetwork("mixed", SubnetworkOptions().width(0.5).width("a", 1.0).width("b", "out", 2));
  const Kept half = kept(own, "half");
  EXPECT_EQ(half.output, (Shape{3}));
  EXPECT_EQ(half.widths.at("a").at("out"), 4);
  EXPECT_EQ(half.widths.at("b").at("out"), 4);
  EXPECT_TRUE(half.widths.at("output").empty());
  EXPECT_EQ(kept(own, "early").widths.at("a").at("out"), 6);
  const Kept mixed = kept(own, "mixed");
  EXPECT_TRUE(mixed.widths.at("a").empty());
  EXPECT_EQ(mixed.widths.at("b").at("out"), 2);

  // What comes behind the last block that can be narrowed does not hide whose output it is.
  NetworkOptions followed = mlp;
  followed.block("act", ActivationOptions(torch::kReLU))
      .block("norm", LayerNormOptions(3))
      .subnetwork("half", SubnetworkOptions().width(0.5));
  EXPECT_EQ(kept(followed, "half").output, (Shape{3}));
  EXPECT_EQ(kept(followed, "half").widths.at("b").at("out"), 4);

  // A stream that the output's shape depends on stays whole; what is inside its blocks does not.
  const auto stream =
      NetworkOptions()
          .input({4})
          .block("into", dense(4, 8))
          .block("middle", ResidualOptions().block("up", dense(8, 16)).block("down", dense(16, 8)))
          .block("norm", LayerNormOptions(8));
  NetworkOptions open = stream;
  open.subnetwork("half", SubnetworkOptions().width(0.5));
  EXPECT_EQ(kept(open, "half").output, (Shape{8}));
  EXPECT_TRUE(kept(open, "half").widths.at("into").empty());
  EXPECT_EQ(kept(open, "half").widths.at("middle").at("up.out"), 8);
  NetworkOptions closed = stream;
  closed.block("output", dense(8, 2)).subnetwork("half", SubnetworkOptions().width(0.5));
  EXPECT_EQ(kept(closed, "half").output, (Shape{2}));
  EXPECT_EQ(kept(closed, "half").widths.at("into").at("out"), 4);

  // Groups that cannot be halved, and a transformer with tied weights.
  const auto language = NetworkOptions()
                            .input({6}, at::kLong)
                            .block("tokens", EmbeddingOptions(11, 16))
                            .block("first", TransformerOptions(16, 4, 32))
                            .block("output", TiedOutputOptions("tokens", 11, 16));
  NetworkOptions narrow = language;
  narrow.subnetwork("half", SubnetworkOptions().width(0.5));
  EXPECT_EQ(kept(narrow, "half").output, (Shape{6, 11}));
  EXPECT_EQ(kept(narrow, "half").widths.at("first").at("heads"), 2);
  EXPECT_EQ(kept(narrow, "half").widths.at("first").at("ffn"), 16);
}

TEST(Width, OfAWholeSubnetworkLeavesWholeWhatFollowsCannotTake) {
  const auto options = NetworkOptions()
                           .input({2, 4, 4})
                           .block("conv", Conv2dOptions(2, 6, 1))
                           .block("fixed", WrappedOptions("Fixed", torch::nn::Conv2d(6, 6, 1)))
                           .block("last", Conv2dOptions(6, 4, 1))
                           .block("pool", GlobalAvgPoolOptions())
                           .block("output", DenseOptions(4, 3))
                           .subnetwork("half", SubnetworkOptions().width(0.5));
  const Description::Subnetwork half = *Description(options).subnetwork("half");
  EXPECT_EQ(half.output, (Shape{3}));
  EXPECT_TRUE(half.fits[0].use.width.empty());
  EXPECT_EQ(half.fits[2].use.width.at("out"), 2);
}

TEST(Width, IsRefusedWhereItWouldChangeTheOutputUnnamed) {
  const auto plain = [](SubnetworkOptions subnetwork) {
    return NetworkOptions()
        .input({4})
        .block("a", DenseOptions(4, 8))
        .block("output", DenseOptions(8, 10))
        .block("act", ActivationOptions(torch::kReLU))
        .subnetwork("s", std::move(subnetwork));
  };
  expect_throws_with(
      [&] { Description(plain(SubnetworkOptions().width("a", 0.5).width("output", 0.5))); },
      {"sub-network 's': the width of block 'output' would change", "from (10) to (5)",
       "{'output': {'out': ...}}", "1 keeps one", "1.0 keeps all"});
  const Description named(plain(SubnetworkOptions().width("output", "out", 0.5)));
  EXPECT_EQ(named.subnetwork("s")->output, (Shape{5}));
  EXPECT_EQ(Description(plain(SubnetworkOptions().width("a", 0.5))).subnetwork("s")->output,
            (Shape{10}));
}

TEST(Width, ErrorsSayWhatNumbersMean) {
  const auto made = [](SubnetworkOptions subnetwork) {
    Description(NetworkOptions()
                    .input({2, 8, 8})
                    .block("conv", Conv2dOptions(2, 4, 3).groups(2))
                    .block("stage", SequenceOptions()
                                        .block("one", Conv2dOptions(4, 4, 1))
                                        .block("deep", SequenceOptions()
                                                           .block("x", Conv2dOptions(4, 4, 1))
                                                           .block("y", Conv2dOptions(4, 4, 1))))
                    .block("pool", GlobalAvgPoolOptions())
                    .block("output", DenseOptions(4, 3))
                    .subnetwork("s", std::move(subnetwork)));
  };
  using Options = SubnetworkOptions;
  made(Options().width("stage", "one", 0.5));
  made(Options().width("stage", "one.out", 2));
  const std::vector<std::pair<Options, std::string>> cases{
      {Options().width("conv", 5), "from 1 to 4, but got 5"},
      {Options().width("conv", 0), "from 1 to 4, but got 0"},
      {Options().width("conv", 1), "a multiple of 2"},
      {Options().width("conv", 1.5), "a fraction above 0 and up to 1, but got 1.5"},
      {Options().width("conv", 0.0), "a fraction above 0 and up to 1, but got 0"},
      {Options().width("stage", 0.5), "has several dimensions"},
      {Options().width("stage", "deep", 0.5), "or several in it"},
      {Options().width("stage", "two", 0.5), "no dimension 'two'"},
      {Options().width(2), "all blocks must be a fraction above 0 and up to 1, but got 2"},
      {Options().width(1), "all blocks must be a fraction above 0 and up to 1, but got 1"},
      {Options().width(1.5), "all blocks must be a fraction above 0 and up to 1, but got 1.5"},
  };
  for (const auto& [options, message] : cases) {
    expect_throws_with([&, given = options] { made(given); },
                       {message, "A whole number is a count (1 keeps one)", "(1.0 keeps all)"});
  }
}

TEST(Layout, CommonViewsAreTheFinestThatServesAll) {
  const Layout whole_axis{12}, each{Axis({{3, 3}, {4, 2}})}, front{{12, 8}}, odd{{12, 5}};
  const auto view = common_view({&whole_axis, &each, &front});
  ASSERT_TRUE(view);
  EXPECT_EQ(view->view, (Shape{3, 4}));
  EXPECT_EQ(view->slices[0], (Shape{3, 4}));
  EXPECT_EQ(view->slices[1], (Shape{3, 2}));
  EXPECT_EQ(view->slices[2], (Shape{2, 4}));
  EXPECT_FALSE(common_view({&each, &odd}));
  EXPECT_EQ(Axis({{3, 3}, {4, 4}}), Axis(12));
  EXPECT_EQ(to_string(each), "(each of 3: 2 of 4)");
}

// -------------------------------------------------------------------------------------------------
// Private parts and statistics

NetworkOptions normed(const BatchNormOptions& norm) {
  return NetworkOptions()
      .input({4}, at::kDouble)
      .block("a", DenseOptions(4, 6))
      .block("n", norm)
      .block("b", DenseOptions(6, 2))
      .subnetwork("half", SubnetworkOptions({"a", "n", "b"}).width("a", 0.5))
      .merge(merge::mean());
}

TEST(PrivateParts, AreTheSubnetworksOwn) {
  Network net(normed(BatchNormOptions(6).per_subnetwork({"affine", "statistics"})));
  const auto names = net->description().parameter_names();
  const std::vector<std::string> expected = {"a.weight",
                                             "a.bias",
                                             "n.weight_base",
                                             "n.weight_half",
                                             "n.bias_base",
                                             "n.bias_half",
                                             "n.running_mean_base",
                                             "n.running_mean_half",
                                             "n.running_var_base",
                                             "n.running_var_half",
                                             "n.num_batches_tracked_base",
                                             "n.num_batches_tracked_half",
                                             "b.weight",
                                             "b.bias"};
  EXPECT_EQ(names, expected);
  EXPECT_EQ(net->parameter_table()[3].sizes(), at::IntArrayRef({3}));
  EXPECT_EQ(net->named_parameters().size() + net->named_buffers().size(), names.size());
  lane_loss(net->joint(at::randn({5, 4}, at::kDouble), {"half"})["half"], 0).backward();
  EXPECT_FALSE(net->parameter_table()[2].grad().defined());
  EXPECT_TRUE(net->parameter_table()[3].grad().defined());
}

TEST(PrivateParts, UnknownOnesAreRefused) {
  expect_throws_with([] { Dense(DenseOptions(2, 2).per_subnetwork({"weight"})); },
                     {"nsn::Dense", "'weight'", "'bias'"});
  expect_throws_with([] { Dense(DenseOptions(2, 2).bias(false).per_subnetwork({"bias"})); },
                     {"'bias'", "no private parts"});
}

TEST(Statistics, HaveToBeMadeBeforeEvaluation) {
  Network net(normed(BatchNormOptions(6).per_subnetwork({"statistics"}).track(false)));
  const at::Tensor x = at::randn({7, 4}, at::kDouble);
  net->train();
  net->joint(x);  // does not track
  net->eval();
  for (const std::string& name : net->description().names()) {
    EXPECT_NO_THROW(net->forward(x, name));
  }
  recalibrate(net, {x.slice(0, 0, 4), x.slice(0, 4, 7)}, {"half"});
  EXPECT_NO_THROW(net->forward(x, "half"));
  expect_throws_with([&] { net->forward(x, "base"); },
                     {"'n.num_batches_tracked_base'", "'base'", "never made", "recalibrate"});

  // The mean over the batches of each one's statistics.
  const auto table = net->parameter_table().tensors();
  const at::Tensor features = at::linear(x, table[0].detach(), table[1].detach()).narrow(1, 0, 3);
  const auto first = features.slice(0, 0, 4), second = features.slice(0, 4, 7);
  const auto names = net->description().parameter_names();
  const auto of = [&](const std::string& name) {
    return table[static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin())];
  };
  expect_close(of("n.running_mean_half"), (first.mean(0) + second.mean(0)) / 2, 1e-12);
  expect_close(of("n.running_var_half"), (first.var(0) + second.var(0)) / 2, 1e-12);
  EXPECT_EQ(of("n.num_batches_tracked_half").item<int64_t>(), 2);

  // Calling it again starts anew.
  recalibrate(net, {x});
  expect_close(of("n.running_mean_half"), features.mean(0), 1e-12);
  EXPECT_NO_THROW(net->forward(x, "base"));
  expect_throws_with([&] { recalibrate(net, {}); }, {"no batches"});
  Network plain(small_options());
  expect_throws_with([&] { recalibrate(plain, {at::ones({1, 5}, at::kDouble)}); },
                     {"no running statistics"});
}

TEST(Statistics, SurviveFilesAndClones) {
  Network net(normed(BatchNormOptions(6).per_subnetwork({"statistics"})));
  const at::Tensor x = at::randn({7, 4}, at::kDouble);
  net->joint(x);
  const std::string path = temporary_path("statistics.safetensors");
  save(net, path);
  Network again = load(path);
  auto copy = std::dynamic_pointer_cast<NetworkImpl>(net->clone());
  again->eval();
  net->eval();
  copy->eval();
  for (const std::string& name : net->description().names()) {
    expect_same_bits(again->forward(x, name).detach(), net->forward(x, name).detach(), name);
    expect_same_bits(copy->forward(x, name).detach(), net->forward(x, name).detach(), name);
  }
}

TEST(Statistics, DecayGroupsLeaveBuffersOut) {
  Network net(normed(BatchNormOptions(6).per_subnetwork({"affine", "statistics"})));
  size_t tensors = 0;
  for (const auto& group : decay_groups(net->parameter_table(), 0.1)) {
    tensors += group.parameters.size();
    for (const at::Tensor& parameter : group.parameters) EXPECT_TRUE(parameter.requires_grad());
  }
  EXPECT_EQ(tensors, net->parameters().size());
  // Under `mean` base's coefficient is 1/2 where half has a part and 1 where not.
  expect_throws_with([&] { decay_groups(net->parameter_table(), 0.1, "base"); },
                     {"'a.weight'", "'base'", "Leave out `of`"});
}

// -------------------------------------------------------------------------------------------------
// Kernels and tables

TEST(Gelu, IsTorchs) {
  torch::manual_seed(3);
  const at::Tensor w = at::randn({7, 5}).set_requires_grad(true);
  const at::Tensor b = at::randn({7}).set_requires_grad(true);
  const at::Tensor x = (at::randn({64, 5}) * 4).set_requires_grad(true);
  const std::vector<merge::Lane> lanes = {{"a", 0}, {"b", 1}};
  const std::vector<Layout> slices = {{{7, 3}, 5}, {7, 5}};
  const auto outputs = functional::linear_gelu({x, x}, w, b, {lanes, merge::sum(), slices, {0, 0}});
  const at::Tensor expected = at::gelu(at::linear(x, w, b));
  expect_close(outputs[1].detach(), expected.detach(), 1e-6);
  expect_close(outputs[0].detach(), expected.detach().narrow(1, 0, 3), 1e-6);
  const auto curved = [](const at::Tensor& y) {
    return (y * y * at::arange(y.numel(), y.options()).sin().view_as(y)).sum();
  };
  const auto loss = [&](const at::Tensor& narrow, const at::Tensor& wide) {
    return curved(narrow) + curved(wide);
  };
  const std::vector<at::Tensor> leaves = {w, b, x};
  const auto actual = torch::autograd::grad({loss(outputs[0], outputs[1])}, leaves, {}, true, true);
  const auto plain =
      torch::autograd::grad({loss(expected.narrow(1, 0, 3), expected)}, leaves, {}, true, true);
  for (size_t i = 0; i < leaves.size(); ++i) {
    expect_close(actual[i].detach(), plain[i].detach(), 2e-4, std::to_string(i));
  }
  // The second derivative depends on what the first is made of.
  const auto twice = [&](const std::vector<at::Tensor>& first) {
    return torch::autograd::grad({curved(first[0]) + curved(first[2])}, leaves);
  };
  const auto actual_twice = twice(actual), plain_twice = twice(plain);
  for (size_t i = 0; i < leaves.size(); ++i) {
    const double scale = plain_twice[i].abs().max().item<double>();
    expect_close(actual_twice[i] / scale, plain_twice[i] / scale, 1e-4, std::to_string(i));
  }
  const at::Tensor extremes =
      at::tensor({-1e30, -40.0, -9.0, -0.0, 9.0, 40.0, 1e30}, at::kFloat).view({7, 1});
  const auto one =
      functional::linear_gelu({extremes}, at::ones({1, 1}), {}, {{{"a", 0}}, merge::sum()})[0];
  expect_close(one, at::gelu(extremes), 1e-6);
}

TEST(Convolution, LanesOfOneInputShareTheForward) {
  torch::manual_seed(7);
  const at::Tensor w = at::randn({4, 2, 3, 3}, at::kDouble).set_requires_grad(true);
  const at::Tensor b = at::randn({4}, at::kDouble).set_requires_grad(true);
  const at::Tensor x = at::randn({3, 2, 6, 5}, at::kDouble).set_requires_grad(true);
  const std::vector<merge::Lane> lanes = {{"a", 1}, {"b", 0}, {"c", 2}};
  const std::vector<Layout> slices = {{4, 2, 3, 3}, {{4, 3}, 2, 3, 3}, {4, 2, 3, 3}};
  for (const auto& rule :
       {merge::sum(), merge::mean(), merge::owner(), merge::two_smallest_mean()}) {
    SCOPED_TRACE(rule.name());
    const auto outputs = functional::convolution({x, x, x}, w, b, {lanes, rule, slices, {0, 0, 0}},
                                                 {{1, 2}, {1, 0}, {1, 1}});
    EXPECT_EQ(outputs[0].data_ptr(), outputs[2].data_ptr()) << "one forward serves both";
    std::vector<std::vector<at::Tensor>> of_lanes;
    at::Tensor input_gradient = at::zeros_like(x);
    for (size_t lane = 0; lane < 3; ++lane) {
      const int64_t kept = slices[lane][0].kept();
      const at::Tensor own_w = w.detach().clone().set_requires_grad(true);
      const at::Tensor own_b = b.detach().clone().set_requires_grad(true);
      const at::Tensor own_x = x.detach().clone().set_requires_grad(true);
      const at::Tensor y = at::conv2d(own_x, own_w.narrow(0, 0, kept), own_b.narrow(0, 0, kept),
                                      at::IntArrayRef({1, 2}), at::IntArrayRef({1, 0}));
      expect_close(outputs[lane].detach(), y.detach(), 1e-12);
      lane_loss(y, lane).backward();
      of_lanes.push_back({own_w.grad(), own_b.grad()});
      input_gradient.add_(own_x.grad());
    }
    (lane_loss(outputs[0], 0) + lane_loss(outputs[1], 1) + lane_loss(outputs[2], 2)).backward();
    const std::vector<merge::Slice> weights = {{4, 2, 3, 3}, {3, 2, 3, 3}, {4, 2, 3, 3}};
    const std::vector<merge::Slice> biases = {{4}, {3}, {4}};
    const auto merged = [&](size_t place, const std::vector<merge::Slice>& own) {
      std::vector<at::Tensor> gradients;
      for (size_t lane = 0; lane < 3; ++lane) {
        gradients.push_back(of_lanes[lane][place].narrow(0, 0, own[lane][0]));
      }
      return merge::apply(rule, lanes, own, gradients, own[0]);
    };
    expect_close(w.grad(), merged(0, weights), 1e-10);
    expect_close(b.grad(), merged(1, biases), 1e-10);
    expect_close(x.grad(), input_gradient, 1e-10);
    for (const at::Tensor& leaf : {w, b, x}) leaf.mutable_grad().reset();
  }
}

TEST(Describe, CountsWhatIsSharedAndOwn) {
  Network net(normed(BatchNormOptions(6).per_subnetwork({"affine", "statistics"})));
  const auto summaries = describe(net->description());
  ASSERT_EQ(summaries.size(), 2U);
  const auto &base = summaries[0], &half = summaries[1];
  EXPECT_EQ(base.parameters, 24 + 6 + 12 + 12 + 2);
  EXPECT_EQ(half.parameters, 12 + 3 + 6 + 6 + 2);
  EXPECT_EQ(half.private_parameters, 6);
  EXPECT_EQ(half.bytes, half.parameters * 8);
  EXPECT_EQ(half.flops, 2 * 4 * 3 + 2 * 3 * 2);
  EXPECT_EQ(half.shared[0], (std::pair<std::string, int64_t>("base", 23)));
  EXPECT_EQ(half.blocks[0].widths[0].kept, 3);
  std::ostringstream text;
  text << summaries;
  EXPECT_NE(text.str().find("out 3 of 6"), std::string::npos) << text.str();
}

TEST(Tied, GradientsAreSumsOverUsesBeforeTheRule) {
  torch::manual_seed(4);
  Network net(NetworkOptions()
                  .input({3}, at::kLong)
                  .block("tokens", EmbeddingOptions(5, 4))
                  .block("mix", DenseOptions(4, 4).activation(torch::kTanh))
                  .block("output", TiedOutputOptions("tokens", 5, 4))
                  .subnetwork("half", SubnetworkOptions({"tokens", "output"}).width("tokens", 2))
                  .merge(merge::mean()));
  EXPECT_EQ(net->description().parameter_names(),
            (std::vector<std::string>{"tokens.weight", "mix.weight", "mix.bias"}));
  const at::Tensor x = at::tensor({0, 3, 3, 1, 4, 2}, at::kLong).view({2, 3});
  const auto outputs = net->joint(x);
  (lane_loss(outputs["base"], 0) + lane_loss(outputs["half"], 1)).backward();
  const auto plain = [&](bool base) {
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& each : net->parameter_table()) {
      leaves.push_back(each.detach().clone().set_requires_grad(true));
    }
    const at::Tensor table = base ? leaves[0] : leaves[0].narrow(1, 0, 2);
    at::Tensor y = at::embedding(table, x);
    if (base) y = at::tanh(at::linear(y, leaves[1], leaves[2]));
    lane_loss(at::linear(y, table), base ? 0 : 1).backward();
    return leaves[0].grad();
  };
  const at::Tensor base = plain(true), half = plain(false);
  at::Tensor expected = base + half;
  expected.narrow(1, 0, 2).div_(2);
  expect_close(net->parameter_table()[0].grad(), expected, 1e-5);
  expect_throws_with(
      [] {
        Description(NetworkOptions()
                        .input({3}, at::kLong)
                        .block("tokens", EmbeddingOptions(5, 4))
                        .block("output", TiedOutputOptions("words", 5, 4)));
      },
      {"'output'", "'words.weight'", "no block has"});
}

}  // namespace
}  // namespace nsn::test
