#include <algorithm>
#include <memory>
#include <set>
#include <sstream>

#include "support.h"

// The module: names, forward, copies, and what torch does with any module.

namespace nsn::test {
namespace {

Network small_network(const merge::Rule& rule = merge::sum(), double dropout = 0.0,
                      at::ScalarType dtype = at::kDouble) {
  torch::manual_seed(11);
  return Network(small_options(rule, dropout, dtype));
}

TEST(Network, NamesItsParametersByBlock) {
  Network net = small_network();
  std::vector<std::string> names;
  for (const auto& item : net->named_parameters()) names.push_back(item.key());
  EXPECT_EQ(names, net->description().parameter_names());
  EXPECT_EQ(names, (std::vector<std::string>{"hidden1.weight", "hidden1.bias", "hidden2.weight",
                                             "hidden2.bias", "output.weight", "output.bias"}));
  EXPECT_TRUE(net->named_buffers().is_empty());
  for (const at::Tensor& parameter : net->parameters()) {
    EXPECT_TRUE(parameter.requires_grad());
    EXPECT_EQ(parameter.scalar_type(), at::kDouble);
  }
  EXPECT_TRUE(net->is_training());
}

TEST(Network, StartsAsTorchsLinears) {
  Network net = small_network();
  torch::manual_seed(11);
  for (const std::string block : {"hidden1", "hidden2", "output"}) {
    const torch::nn::Linear plain(5, block == "output" ? 3 : 5);
    const auto parameters = net->named_parameters();
    // Linear draws in float32; the same bound, and the same generator.
    EXPECT_LE(parameters[block + ".weight"].abs().max().item<double>(), 1.0 / std::sqrt(5.0));
    EXPECT_LE(parameters[block + ".bias"].abs().max().item<double>(), 1.0 / std::sqrt(5.0));
  }
  Network wide(NetworkOptions().input({300}).block(
      "a", DenseOptions(300, 200).weight_init(WeightInit::kXavierUniform).bias_init(0.01)));
  const double bound = std::sqrt(6.0 / 500.0);
  const auto parameters = wide->parameters();
  EXPECT_LE(parameters[0].abs().max().item<double>(), bound);
  EXPECT_GT(parameters[0].abs().max().item<double>(), 0.99 * bound);
  EXPECT_NEAR(parameters[0].std().item<double>(), bound / std::sqrt(3.0), 0.01 * bound);
  EXPECT_TRUE(parameters[1].eq(0.01F).all().item<bool>());
}

TEST(Network, JointEqualsEachForwardAlone) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Case test = random_case(seed, "mean");
    test.net->eval();
    const auto outputs = test.net->joint(test.x);
    EXPECT_EQ(outputs.keys(), test.net->description().names());
    for (const std::string& name : test.net->description().names()) {
      expect_close(outputs[name], test.net->forward(test.x, name), 1e-12, name);
      expect_close(
          outputs[name],
          plain_forward(test.net->core(), test.net->parameter_table(), test.x, name, std::nullopt),
          1e-12, name);
    }
    expect_same_bits(test.net->forward(test.x), test.net->forward(test.x, "base"));
  }
}

TEST(Network, OutputsComeInTheOrderAskedFor) {
  Network net = small_network();
  const auto outputs = net->joint(at::randn({2, 5}, at::kDouble), {"sub2", "base"});
  EXPECT_EQ(outputs.keys(), (std::vector<std::string>{"sub2", "base"}));
}

TEST(Network, PermutingLanesChangesNothing) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Case test = random_case(seed, "mean");
    test.net->train();
    std::vector<std::string> names = test.net->description().names();
    torch::manual_seed(seed);
    const auto expected = test.net->joint(test.x, names);
    Random random(seed);
    random.shuffle(names);
    torch::manual_seed(seed);
    const auto permuted = test.net->joint(test.x, names);
    for (const std::string& name : names) expect_same_bits(permuted[name], expected[name], name);
  }
}

TEST(Network, TheSameSeedGivesTheSameBits) {
  const auto run = [](uint64_t seed) {
    torch::manual_seed(seed);
    Network net(small_options(merge::mean(), 0.5));
    torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    for (int step = 0; step < 5; ++step) {
      optimizer.zero_grad();
      joint_loss(net->joint(at::randn({8, 5}, at::kDouble)), at::randint(3, {8}, at::kLong))
          .backward();
      optimizer.step();
    }
    return net->parameters();
  };
  const auto one = run(4), same = run(4), other = run(5);
  for (size_t i = 0; i < one.size(); ++i) {
    expect_same_bits(one[i], same[i]);
    EXPECT_FALSE(one[i].equal(other[i]));
  }
}

TEST(Network, OutputsShareNoStorage) {
  // "twin" computes what base does, and an output may not change under the other's hands.
  torch::manual_seed(0);
  Network net(NetworkOptions()
                  .input({4})
                  .block("a", DenseOptions(4, 4).activation(torch::kReLU))
                  .subnetwork("twin", SubnetworkOptions({"a"})));
  for (const bool training : {false, true}) {
    for (const bool recorded : {false, true}) {
      const torch::AutoGradMode mode(recorded);
      net->train(training);
      const at::Tensor x = at::randn({3, 4});
      const auto outputs = net->joint(x);
      EXPECT_FALSE(outputs["base"].is_alias_of(outputs["twin"]));
      EXPECT_FALSE(outputs["base"].is_alias_of(x));
      EXPECT_FALSE(outputs["base"].is_view());
      const at::Tensor before = outputs["twin"].clone();
      outputs["base"].detach().add_(1.0);
      expect_same_bits(outputs["twin"], before);
    }
  }
}

TEST(Network, OutputsAreCopiedOnlyWhereTheyShareStorage) {
  Network net = small_network(merge::sum(), 0.5);
  const at::Tensor x = at::randn({3, 5}, at::kDouble);
  EXPECT_EQ(net->forward(x).grad_fn()->name().find("Clone"), std::string::npos);
  EXPECT_NE(net->joint(x)["base"].grad_fn()->name().find("Clone"), std::string::npos);
}

TEST(Network, ChecksItsInput) {
  Network net = small_network(merge::sum(), 0.0, at::kFloat);
  const auto joint = [&](const at::Tensor& x) { net->joint(x); };
  expect_throws_with([&] { joint(at::randn({2, 6})); }, {"(B, 5)", "(2, 6)"});
  expect_throws_with([&] { joint(at::randn({5})); }, {"(B, 5)", "(5)", "unsqueeze(0)"});
  expect_throws_with([&] { joint(at::randn({2, 1, 5})); }, {"(B, 5)", "(2, 1, 5)", "flatten"});
  expect_throws_with([&] { joint(at::randn({})); }, {"(B, 5)", "()"});
  expect_throws_with([&] { joint(at::ones({2, 5}, at::kLong)); }, {"dtype", "Float", "Long"});
  expect_throws_with([&] { joint({}); }, {"undefined"});
  const at::Tensor x = at::randn({2, 5});
  expect_throws_with([&] { net->joint(x, {"base", "sub7"}); },
                     {"no sub-network 'sub7'", "'base', 'sub1', 'sub2'"});
  expect_throws_with([&] { net->joint(x, {"base", "base"}); }, {"'base'", "twice"});
  expect_throws_with([&] { net->joint(x, std::vector<std::string>()); }, {"at least one"});
  expect_throws_with([&] { net->forward(x, "nobody"); }, {"'nobody'"});
  expect_throws_with([&] { net->core().joint(net->parameter_table(), x, size_t{9}, false); },
                     {"no sub-network 9"});
  expect_throws_with([&] { net->core().joint({}, x, size_t{0}, false); },
                     {"expected 6 parameters"});
}

TEST(Network, ChecksItsParameters) {
  Network net = small_network(merge::sum(), 0.0, at::kFloat);
  const at::Tensor x = at::randn({2, 5});
  auto table = net->parameter_table().tensors();
  table[2] = at::randn({5, 4});
  expect_throws_with([&] { net->core().joint(table, x, size_t{0}, false); },
                     {"'hidden2.weight'", "(5, 5)", "(5, 4)"});
  table[2].reset();
  expect_throws_with([&] { net->core().joint(table, x, size_t{1}, false); },
                     {"'hidden2.weight'", "undefined"});
  // sub2 does not use it.
  EXPECT_EQ(net->core().joint(table, x, size_t{2}, false)[0].size(1), 3);
  expect_throws_with([&] { NetworkImpl(net->description(), {x}); }, {"expected 6 parameters", "1"});
}

TEST(Network, EmptyBatchesAndOtherShapesWork) {
  Network net = small_network();
  EXPECT_EQ(net->joint(at::empty({0, 5}, at::kDouble))["sub1"].sizes(), at::IntArrayRef({0, 3}));
  Network deep(NetworkOptions().input({2, 3, 4}).block("a", DenseOptions(4, 6)));
  EXPECT_EQ(deep->forward(at::randn({7, 2, 3, 4})).sizes(), at::IntArrayRef({7, 2, 3, 6}));
}

TEST(Network, DropsInTrainingOnly) {
  Network net = small_network(merge::sum(), 0.9);
  const at::Tensor x = at::randn({6, 5}, at::kDouble);
  EXPECT_FALSE(net->forward(x).equal(net->forward(x)));
  net->eval();
  const auto state = at::detail::getDefaultCPUGenerator().get_state();
  expect_same_bits(net->forward(x), net->forward(x));
  EXPECT_TRUE(at::detail::getDefaultCPUGenerator().get_state().equal(state));
}

TEST(NetworkClone, IsIndependent) {
  Network net = small_network(merge::mean(), 0.5);
  net->parameters()[2].set_requires_grad(false);
  net->eval();
  net->forward(at::randn({2, 5}, at::kDouble)).sum().backward();
  const auto state = at::detail::getDefaultCPUGenerator().get_state();
  const auto copy = std::dynamic_pointer_cast<NetworkImpl>(net->clone());
  ASSERT_NE(copy, nullptr);
  EXPECT_TRUE(at::detail::getDefaultCPUGenerator().get_state().equal(state))
      << "a copy needs no random numbers";
  EXPECT_FALSE(copy->is_training());
  EXPECT_EQ(copy->description(), net->description());
  const auto own = net->named_parameters(), copied = copy->named_parameters();
  EXPECT_EQ(own.keys(), copied.keys());
  for (const auto& item : own) {
    const at::Tensor& other = copied[item.key()];
    expect_same_bits(other, item.value());
    EXPECT_FALSE(other.is_alias_of(item.value()));
    EXPECT_EQ(other.requires_grad(), item.value().requires_grad());
    EXPECT_TRUE(other.is_leaf());
    expect_same_bits(other.grad(), item.value().grad());
    if (other.grad().defined()) {
      EXPECT_FALSE(other.grad().is_alias_of(item.value().grad()));
    }
  }
  for (const auto& child : copy->children()) EXPECT_FALSE(child->is_training());
  const at::Tensor x = at::randn({2, 5}, at::kDouble);
  const at::Tensor before = net->forward(x);
  {
    const torch::NoGradGuard no_grad;
    for (at::Tensor& parameter : copy->parameters()) parameter.zero_();
  }
  expect_same_bits(net->forward(x), before);
}

TEST(Network, MovesToAnotherDtype) {
  Network net = small_network(merge::sum(), 0.0, at::kFloat);
  const at::Tensor x = at::randn({2, 5});
  net->eval();
  const at::Tensor single = net->forward(x);
  net->to(at::kDouble);
  const at::Tensor twice = net->forward(x.to(at::kDouble));
  EXPECT_EQ(twice.scalar_type(), at::kDouble);
  expect_close(twice, single.to(at::kDouble), 1e-5);
  joint_loss(net->joint(x.to(at::kDouble)), at::zeros({2}, at::kLong)).backward();
  for (const at::Tensor& parameter : net->parameters()) {
    EXPECT_EQ(parameter.grad().scalar_type(), at::kDouble);
  }
}

TEST(Network, LearnsWithTorchsOptimizers) {
  Network net = small_network(merge::mean());
  const at::Tensor x = at::randn({16, 5}, at::kDouble);
  const at::Tensor y = at::randint(3, {16}, at::kLong);
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.5));
  const auto step = [&] {
    const at::Tensor loss = joint_loss(net->joint(x), y);
    optimizer.zero_grad();
    loss.backward();
    return loss.item<double>();
  };
  const double first = step();
  const at::Tensor weight = net->named_parameters()["hidden2.weight"];
  const at::Tensor expected = weight.detach() - 0.5 * weight.grad();
  optimizer.step();
  expect_close(weight.detach(), expected, 1e-14);
  for (int i = 0; i < 100; ++i) {
    step();
    optimizer.step();
  }
  EXPECT_LT(step(), 0.7 * first);
}

TEST(Network, GoesThroughTorchsArchives) {
  Network net = small_network();
  std::stringstream stream;
  torch::save(net, stream);
  torch::manual_seed(99);
  Network other(net->description());
  EXPECT_FALSE(other->parameters()[0].equal(net->parameters()[0]));
  torch::load(other, stream);
  for (size_t i = 0; i < 6; ++i) {
    expect_same_bits(other->parameters()[i], net->parameters()[i]);
  }
}

TEST(Network, PrintsItsBlocks) {
  std::ostringstream stream;
  stream << small_network(merge::mean(), 0.25);
  const std::string text = stream.str();
  for (const std::string part : {"nsn::Network(input=(5), merge=mean)", "hidden1", "output",
                                 "Dense(5, 5, activation=relu, dropout=0.25)", "Dense(5, 3)"}) {
    EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in " << text;
  }
}

TEST(Network, TakesAThousandBlocks) {
  constexpr int kBlocks = 1000;
  NetworkOptions options;
  options.input({2}, at::kDouble).merge(merge::mean());
  std::vector<std::string> half;
  for (int i = 0; i < kBlocks; ++i) {
    const std::string name = "block" + std::to_string(i);
    options.block(name, DenseOptions(2, 2).activation(torch::kTanh));
    if (i % 2 == 1) half.push_back(name);
  }
  options.subnetwork("half", half);
  Network net(options);
  joint_loss(net->joint(at::randn({3, 2}, at::kDouble)), at::zeros({3}, at::kLong)).backward();
  EXPECT_EQ(net->parameters().size(), 2U * kBlocks);
  for (const at::Tensor& parameter : net->parameters()) EXPECT_TRUE(parameter.grad().defined());
  EXPECT_EQ(Description::from_json(net->description().to_json()), net->description());
}

TEST(Network, WithoutSubnetworksIsTorchsSequential) {
  torch::manual_seed(8);
  Network net(NetworkOptions()
                  .input({6}, at::kDouble)
                  .block("a", DenseOptions(6, 4).activation(torch::kReLU))
                  .block("b", DenseOptions(4, 4).activation(torch::kSiLU).bias(false))
                  .block("c", DenseOptions(4, 3))
                  .merge(merge::two_smallest_mean()));
  torch::nn::Sequential plain(torch::nn::Linear(6, 4), torch::nn::ReLU(),
                              torch::nn::Linear(torch::nn::LinearOptions(4, 4).bias(false)),
                              torch::nn::SiLU(), torch::nn::Linear(4, 3));
  plain->to(at::kDouble);
  const auto own = net->parameters(), others = plain->parameters();
  ASSERT_EQ(own.size(), others.size());
  {
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < own.size(); ++i) others[i].copy_(own[i]);
  }
  const at::Tensor x = at::randn({5, 6}, at::kDouble).set_requires_grad(true);
  const at::Tensor y = net->forward(x), expected = plain->forward(x);
  expect_close(y, expected, 1e-12);
  auto leaves = own, other_leaves = others;
  leaves.push_back(x);
  other_leaves.push_back(x);
  const auto gradients = torch::autograd::grad({lane_loss(y, 0)}, leaves);
  const auto plain_gradients = torch::autograd::grad({lane_loss(expected, 0)}, other_leaves);
  for (size_t i = 0; i < leaves.size(); ++i) {
    expect_close(gradients[i], plain_gradients[i], 1e-12);
  }
}

// A block of a user's own: y = x * scale + shift.
class Affine : public Block {
 public:
  explicit Affine(int64_t features) : features_(features) {}
  std::string type() const override { return "Affine"; }
  std::string options_json() const override { return "{}"; }
  std::vector<ParameterSpec> parameters() const override {
    return {{"scale", {features_}}, {"shift", {features_}, /*decays=*/false}};
  }
  std::optional<Shape> output_shape(const Shape& input) const override {
    return input.back() == features_ ? std::optional(input) : std::nullopt;
  }
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                     const BlockPass& pass) const override {
    static_cast<void>(lane);
    static_cast<void>(pass);
    return x * parameters[0] + parameters[1];
  }

 private:
  int64_t features_;
};

TEST(CustomBlock, MergesItsGradients) {
  for (const auto& rule : {merge::sum(), merge::mean(), merge::owner(),
                           merge::weighted({{"base", 0.5}, {"sub1", 2.0}, {"sub2", -1.0}})}) {
    SCOPED_TRACE(rule.name());
    torch::manual_seed(1);
    Network net(NetworkOptions()
                    .input({3}, at::kDouble)
                    .block("a", std::make_shared<const Affine>(3))
                    .block("b", DenseOptions(3, 3).activation(torch::kTanh))
                    .block("c", std::make_shared<const Affine>(3))
                    .subnetwork("sub1", SubnetworkOptions({"b", "c"}))
                    .subnetwork("sub2", SubnetworkOptions({"c"}))
                    .merge(rule));
    const at::Tensor x = at::randn({4, 3}, at::kDouble);
    const auto outputs = net->joint(x);
    (lane_loss(outputs["base"], 0) + lane_loss(outputs["sub1"], 1) + lane_loss(outputs["sub2"], 2))
        .backward();
    const auto merged = take_gradients(net);

    std::vector<std::vector<at::Tensor>> of_lanes;
    for (size_t lane = 0; lane < 3; ++lane) {
      std::vector<at::Tensor> leaves;
      for (const at::Tensor& parameter : net->parameters()) {
        leaves.push_back(parameter.detach().clone().set_requires_grad(true));
      }
      at::Tensor y = lane == 0 ? x * leaves[0] + leaves[1] : x;
      if (lane <= 1) y = at::tanh(at::linear(y, leaves[2], leaves[3]));
      lane_loss(y * leaves[4] + leaves[5], lane).backward();
      of_lanes.emplace_back();
      for (const at::Tensor& leaf : leaves) of_lanes.back().push_back(leaf.grad());
    }
    const auto expected = merge_all_plainly(net->description(), {"base", "sub1", "sub2"}, of_lanes);
    for (size_t i = 0; i < expected.size(); ++i) expect_close(merged[i], expected[i], 1e-12);
  }
}

TEST(CustomBlock, HasNoDropoutUnlessItSaysSo) {
  expect_throws_with(
      [] {
        Description(NetworkOptions()
                        .input({3})
                        .block("a", std::make_shared<const Affine>(3))
                        .subnetwork("s", SubnetworkOptions({"a"}).dropout("a", 0.5)));
      },
      {"'s'", "'a'", "Affine has none"});
}

TEST(CustomBlock, MayReturnItsInput) {
  struct Identity : Affine {
    using Affine::Affine;
    std::vector<ParameterSpec> parameters() const override { return {}; }
    at::Tensor forward(const at::Tensor& x, at::TensorList, const LanePass&,
                       const BlockPass&) const override {
      return x;
    }
  };
  Network net(NetworkOptions()
                  .input({3})
                  .block("a", std::make_shared<const Identity>(3))
                  .subnetwork("twin", SubnetworkOptions({"a"})));
  const at::Tensor x = at::randn({2, 3});
  const auto outputs = net->joint(x);
  EXPECT_FALSE(outputs["base"].is_alias_of(x));
  EXPECT_FALSE(outputs["base"].is_alias_of(outputs["twin"]));
  expect_same_bits(outputs["twin"], x);
}

TEST(ParameterTable, HoldsWhatADescriptionDescribes) {
  const auto core = std::make_shared<const Core>(Description(NetworkOptions()
                                                                 .input({5})
                                                                 .block("a", DenseOptions(5, 4))
                                                                 .block("norm", BatchNormOptions(4))
                                                                 .block("b", DenseOptions(4, 3))
                                                                 .subnetwork("early", {{"a"}})));
  auto tensors = core->initial_parameters();
  const ParameterTable table(core, tensors);
  EXPECT_EQ(table.size(), 9U);
  EXPECT_EQ(table.places_of({}), (std::vector<size_t>{0, 1}));
  EXPECT_TRUE(table.now().empty()) << "nobody knows of later moments";
  expect_throws_with([&] { table.places_of({"late"}); }, {"'late'", "'base', 'early'"});
  const ParameterTable part(core, tensors, LoadReport{{"base"}});
  EXPECT_EQ(part.loaded(), std::vector<std::string>{"early"});
  EXPECT_EQ(part.places_of({"early"}), std::vector<size_t>{1});
  expect_throws_with([&] { part.places_of({}); },
                     {"'base' was not loaded", "'early'", "load_rest"});
  // Undefined ones are not there; what is there has to fit.
  const ParameterTable read = table.for_inference({1}, /*copies_modules=*/false);
  EXPECT_TRUE(read[0].is_alias_of(tensors[0]));
  EXPECT_FALSE(read[2].defined());
  expect_throws_with([&] { read.check_whole(); }, {"'norm.weight'", "undefined", "(4)"});
  tensors[0] = at::rand({4, 6});
  expect_throws_with([&] { ParameterTable(core, tensors); }, {"'a.weight'", "(4, 5)", "(4, 6)"});
  tensors[0] = at::ones({4, 5}, at::kLong);
  expect_throws_with([&] { ParameterTable(core, tensors); }, {"'a.weight'", "floating", "Long"});
  tensors[0] = at::rand({4, 5});
  tensors[6] = tensors[6].to(at::kFloat);
  expect_throws_with([&] { ParameterTable(core, tensors); },
                     {"'norm.num_batches_tracked'", "Long", "Float"});
  tensors.pop_back();
  expect_throws_with([&] { ParameterTable(core, tensors); }, {"expected 9 parameters", "8"});
}

TEST(ParameterTable, TellsTheTensorsOfLaterMoments) {
  std::optional<ParameterTable> table;
  {
    Network net(NetworkOptions().input({5}).block("a", DenseOptions(5, 4)));
    table = net->parameter_table();
    net->to(at::kDouble);
    EXPECT_EQ(table->now()[0].scalar_type(), at::kDouble);
  }
  EXPECT_TRUE(table->now().empty()) << "the network is gone";
}

}  // namespace
}  // namespace nsn::test
