#include "support.h"

// What is done to weights between steps: a bound on their rows, and their moving average.

namespace nsn::test {
namespace {

Network two_layers() {
  torch::manual_seed(4);
  return Network(NetworkOptions()
                     .input({4})
                     .block("hidden", DenseOptions(4, 6))
                     .block("norm", BatchNormOptions(6))
                     .block("act", ActivationOptions(torch::kReLU))
                     .block("out", DenseOptions(6, 3))
                     .subnetwork("half", SubnetworkOptions().width("hidden", 0.5)));
}

TEST(RowNorms, AreBoundedInTheNamedBlocks) {
  Network net = two_layers();
  const at::NoGradGuard no_grad;
  auto parameters = net->named_parameters();
  at::Tensor& weight = parameters["hidden.weight"];
  weight.copy_(at::arange(24).view({6, 4}) / 10.0);
  parameters["out.weight"].fill_(9.0);
  const at::Tensor before = weight.clone(), bias = parameters["hidden.bias"].clone();
  bound_row_norms(net->parameter_table(), 1.5, {"hidden"});
  for (int64_t row = 0; row < 6; ++row) {
    const double norm = before[row].norm().item<double>();
    const at::Tensor expected = norm > 1.5 ? before[row] * (1.5 / norm) : before[row];
    expect_close(weight[row], expected, 1e-5);
  }
  expect_same_bits(parameters["hidden.bias"], bias);
  EXPECT_EQ(parameters["out.weight"].min().item<float>(), 9.0F);
}

TEST(RowNorms, SayWhatTheyCannotBound) {
  const Network net = two_layers();
  const auto bound = [&](double most, std::vector<std::string> blocks) {
    return [=] { bound_row_norms(net->parameter_table(), most, blocks); };
  };
  expect_throws_with(bound(0.0, {"hidden"}), {"must be positive", "0"});
  expect_throws_with(bound(1.0, {"hiden"}), {"no block 'hiden'"});
  expect_throws_with(bound(1.0, {"act"}), {"block 'act' has no weight of a product"});
  expect_throws_with(bound(1.0, {"norm"}), {"block 'norm' has no weight"});
}

TEST(WeightAverage, IsWhatItsFormulaSays) {
  Network net = two_layers();
  WeightAverage average(net, 0.75);
  std::vector<at::Tensor> expected;
  torch::optim::SGD optimizer(net->parameters(), 0.1);
  for (int step = 0; step < 4; ++step) {
    optimizer.zero_grad();
    joint_loss(net->joint(at::randn({8, 4})), at::randint(3, {8}, at::kLong)).backward();
    optimizer.step();
    average.update(net);
    const ParameterTable table = net->parameter_table();
    for (size_t i = 0; i < table.size(); ++i) {
      const at::Tensor now = table[i].detach().clone();
      if (step == 0) {
        expected.push_back(now);
      } else if (now.is_floating_point()) {
        expected[i] = 0.75 * expected[i] + 0.25 * now;
      } else {
        expected[i] = now;
      }
    }
  }
  const ParameterTable made = average.network()->parameter_table();
  for (size_t i = 0; i < made.size(); ++i) {
    const std::string& name = made.description().parameters()[i].name;
    expect_close(made[i], expected[i], 1e-6, name);
    EXPECT_FALSE(made[i].is_alias_of(net->parameter_table()[i])) << name;
  }
  EXPECT_FALSE(average.network()->is_training());
  EXPECT_TRUE(net->is_training());
}

TEST(WeightAverage, SaysWhatItCannotAverage) {
  const Network net = two_layers();
  expect_throws_with([&] { WeightAverage(net, 1.0); }, {"below 1, but is 1"});
  WeightAverage average(net, 0.5);
  const Network other(NetworkOptions().input({4}).block("a", DenseOptions(4, 2)));
  expect_throws_with([&] { average.update(other); }, {"another description"});
}

Description five() {
  NetworkOptions options;
  options.input({4});
  const std::vector<std::string> names = {"a", "b", "c", "d", "e"};
  for (const std::string& name : names) options.block(name, DenseOptions(4, 4));
  for (size_t i = 1; i < names.size(); ++i) {
    options.subnetwork("from_" + names[i],
                       SubnetworkOptions(std::vector<std::string>(
                           names.begin() + static_cast<int64_t>(i), names.end())));
  }
  return options;
}

TEST(Schedule, IsAFunctionOfSeedAndStep) {
  torch::manual_seed(1);
  const auto first = schedule::sandwich(five(), 2), other = schedule::sandwich(five(), 2);
  const auto again = schedule::sandwich(five(), 2, first.seed());
  ASSERT_TRUE(first.seed());
  bool differs = false;
  for (int64_t step = 0; step < 40; ++step) {
    const auto names = first.at(step, 0).names;
    ASSERT_EQ(names.size(), 4U);
    EXPECT_EQ(names[0], "base");
    EXPECT_EQ(names[1], "from_e");
    EXPECT_EQ(again.at(step, 3).names, names);
    differs = differs || other.at(step, 0).names != names;
  }
  EXPECT_TRUE(differs);
}

TEST(Schedule, RunsWithTheNetwork) {
  Network net(five());
  const auto schedule = schedule::from_epoch(five(), {{"from_b", 1}}).weight("base", 0.5);
  const auto turn = schedule.at(0, 0);
  EXPECT_EQ(turn.names, (std::vector<std::string>{"base", "from_c", "from_d", "from_e"}));
  EXPECT_EQ(turn.weights, (std::map<std::string, double>{{"base", 0.5}}));
  const auto options = JointLossOptions().weights(turn.weights);
  joint_loss(net->joint(at::randn({2, 4}), turn.names), at::zeros({2}, at::kLong), options)
      .backward();
  expect_throws_with([&] { schedule::random(five(), 9); },
                     {"9 sub-networks are to be drawn", "only 5"});
  expect_throws_with([&] { schedule::Schedule(five(), nullptr); }, {"there is no function"});
}

}  // namespace
}  // namespace nsn::test
