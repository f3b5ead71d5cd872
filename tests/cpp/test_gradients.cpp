#include <limits>

#include "support.h"

// Merged gradients against gradients that plain autograd computes one sub-network at a time, and
// against finite differences.

namespace nsn::test {
namespace {

constexpr uint64_t kNetworksPerRule = 60;

class MergedGradients : public testing::TestWithParam<std::string> {};

/// Random networks of one rule: the joint pass against one sub-network at a time.
void expect_merged_gradients(const std::string& rule) {
  int compared = 0, with_dropout = 0, undefined = 0;
  for (uint64_t seed = 0; seed < kNetworksPerRule; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Case test = random_case(seed, rule);
    torch::manual_seed(seed + 1);
    std::optional<uint64_t> pass_seed;
    if (test.net->is_training()) pass_seed = next_pass_seed();
    const Gradients expected = reference_gradients(test, pass_seed);
    const Outputs outputs = test.net->joint(test.x, test.lanes);
    for (const std::string& lane : test.lanes) {
      expect_close(
          outputs[lane].detach(),
          plain_forward(test.net->core(), test.net->parameter_table(), test.x, lane, pass_seed)
              .detach(),
          1e-12, lane);
    }
    const at::Tensor loss = total_loss(test, outputs);
    if (loss.defined() && loss.requires_grad()) loss.backward();
    const auto names = test.net->description().parameter_names();
    const auto actual = take_gradients(test.net);
    for (size_t i = 0; i < names.size(); ++i) {
      expect_close(actual[i], expected.parameters[i], 1e-10, names[i]);
      ++(actual[i].defined() ? compared : undefined);
    }
    expect_close(test.x.grad(), expected.input, 1e-10, "the input");
    with_dropout += pass_seed.has_value();
    if (testing::Test::HasFailure()) break;
  }
  // The random networks must reach what the test is about.
  EXPECT_GT(compared, 100);
  EXPECT_GT(undefined, 20);
  EXPECT_GT(with_dropout, 20);
}

TEST_P(MergedGradients, EqualTheRuleAppliedToPlainGradients) {
  expect_merged_gradients(GetParam());
}

TEST_P(MergedGradients, AreTheSameByPlainOperations) {
  const functional::PlainGuard plain;
  expect_merged_gradients(GetParam());
}

TEST_P(MergedGradients, EqualTheRuleAppliedToFiniteDifferences) {
  constexpr double kStep = 1e-5;
  for (uint64_t seed = 1000; seed < 1004; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    torch::manual_seed(seed);
    // Smooth activations, since finite differences across a kink mean nothing.
    Network net(NetworkOptions()
                    .input({3}, at::kDouble)
                    .block("a", DenseOptions(3, 3).activation(torch::kTanh))
                    .block("b", DenseOptions(3, 3).activation(torch::kGELU))
                    .block("c", DenseOptions(3, 2).activation(torch::kSigmoid))
                    .subnetwork("sub1", SubnetworkOptions({"a", "c"}))
                    .subnetwork("sub2", SubnetworkOptions({"b", "c"}))
                    .subnetwork("sub3", SubnetworkOptions({"c"}))
                    .merge(make_rule(GetParam(), {"base", "sub1", "sub2", "sub3"}, random)));
    Case test{net,
              at::randn({4, 3}, at::kDouble),
              {"sub2", "base", "sub3", "sub1"},
              {1.0, 0.5, std::nullopt, 2.0}};
    total_loss(test, net->joint(test.x, test.lanes)).backward();
    const auto actual = take_gradients(net);

    const torch::NoGradGuard no_grad;
    auto table = net->parameter_table().tensors();
    const auto loss_of = [&](size_t lane) {
      const at::Tensor output = net->joint(test.x, {test.lanes[lane]})[0].value();
      return lane_loss(output, lane).item<double>() * *test.weights[lane];
    };
    std::vector<std::vector<at::Tensor>> of_lanes(test.lanes.size());
    for (size_t lane = 0; lane < test.lanes.size(); ++lane) {
      for (at::Tensor& parameter : table) {
        if (!test.weights[lane]) {
          of_lanes[lane].emplace_back();
          continue;
        }
        at::Tensor gradient = at::empty_like(parameter);
        auto* value = parameter.data_ptr<double>();
        for (int64_t i = 0; i < parameter.numel(); ++i) {
          const double before = value[i];
          value[i] = before + kStep;
          const double above = loss_of(lane);
          value[i] = before - kStep;
          const double below = loss_of(lane);
          value[i] = before;
          gradient.data_ptr<double>()[i] = (above - below) / (2.0 * kStep);
        }
        of_lanes[lane].push_back(gradient);
      }
    }
    const auto expected = merge_all_plainly(net->description(), test.lanes, of_lanes);
    for (size_t i = 0; i < expected.size(); ++i) {
      expect_close(actual[i], expected[i], 1e-7, net->description().parameter_names()[i]);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, MergedGradients, testing::ValuesIn(rule_names()),
                         [](const auto& rule) { return rule.param; });

/// small_options with gradients of the plain kind: {base, sub1, sub2} -> those of all parameters.
std::vector<std::vector<at::Tensor>> plain_gradients(const Network& net, const at::Tensor& x) {
  std::vector<std::vector<at::Tensor>> result;
  const std::vector<std::string> names = net->description().names();
  for (size_t lane = 0; lane < names.size(); ++lane) {
    Case alone{net, x, {names[lane]}, {1.0}};
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& parameter : net->parameter_table()) {
      leaves.push_back(parameter.detach().clone().set_requires_grad(true));
    }
    lane_loss(plain_forward(net->core(), leaves, x, names[lane], std::nullopt), lane).backward();
    result.emplace_back();
    for (const at::Tensor& leaf : leaves) result.back().push_back(leaf.grad());
  }
  return result;
}

Case small_case(const merge::Rule& rule) {
  torch::manual_seed(5);
  Case test{Network(small_options(rule)), at::randn({4, 5}, at::kDouble), {}, {}};
  test.lanes = test.net->description().names();
  test.weights.assign(3, 1.0);
  return test;
}

TEST(JointPass, TwoSmallestMeanIsThePapersStep) {
  // output <- mean(sub2, sub1); hidden2 <- mean(sub1, base); hidden1 <- base.
  Case test = small_case(merge::two_smallest_mean());
  const auto plain = plain_gradients(test.net, test.x);
  total_loss(test, test.net->joint(test.x)).backward();
  const auto merged = take_gradients(test.net);
  for (size_t i : {0, 1}) {
    expect_close(merged[i], plain[0][i], 1e-12, "hidden1");
    expect_close(merged[i + 2], (plain[0][i + 2] + plain[1][i + 2]) / 2, 1e-12, "hidden2");
    expect_close(merged[i + 4], (plain[1][i + 4] + plain[2][i + 4]) / 2, 1e-12, "output");
  }
}

TEST(JointPass, LanesOfThePassCountAndNoOthers) {
  Case test = small_case(merge::mean());
  const auto plain = plain_gradients(test.net, test.x);
  const auto outputs = test.net->joint(test.x, {"sub2", "base"});
  (lane_loss(outputs["base"], 0) + lane_loss(outputs["sub2"], 2)).backward();
  const auto merged = take_gradients(test.net);
  expect_close(merged[2], plain[0][2], 1e-12, "hidden2.weight");
  expect_close(merged[4], (plain[0][4] + plain[2][4]) / 2, 1e-12, "output.weight");
}

TEST(JointPass, UnusedParametersGetNoGradient) {
  Case test = small_case(merge::sum());
  lane_loss(test.net->joint(test.x, {"sub1"})["sub1"], 0).backward();
  const auto gradients = take_gradients(test.net);
  EXPECT_FALSE(gradients[0].defined());
  EXPECT_FALSE(gradients[1].defined());
  for (size_t i = 2; i < 6; ++i) EXPECT_TRUE(gradients[i].defined());
}

TEST(JointPass, OutputsOutsideTheLossCountAsZero) {
  Case test = small_case(merge::mean());
  const auto plain = plain_gradients(test.net, test.x);
  const auto outputs = test.net->joint(test.x);
  lane_loss(outputs["sub1"], 1).backward();
  const auto merged = take_gradients(test.net);
  EXPECT_FALSE(merged[0].defined()) << "base alone uses hidden1, and entered no loss";
  expect_close(merged[2], plain[1][2] / 2, 1e-12, "hidden2.weight");
  expect_close(merged[4], plain[1][4] / 3, 1e-12, "output.weight");
}

TEST(JointPass, ZeroCoefficientsAloneGiveExactZeros) {
  Case test = small_case(merge::weighted({{"base", 0.0}, {"sub1", 0.0}, {"sub2", 0.0}}));
  Case with_input = test;
  with_input.x = test.x.clone().set_requires_grad(true);
  total_loss(with_input, test.net->joint(with_input.x)).backward();
  for (const at::Tensor& gradient : take_gradients(test.net)) {
    expect_same_bits(gradient, at::zeros_like(gradient));
  }
  EXPECT_GT(with_input.x.grad().abs().sum().item<double>(), 0.1);
}

TEST(JointPass, ZeroCoefficientsKeepOutNonFiniteGradients) {
  Case test = small_case(merge::owner());
  const auto outputs = test.net->joint(test.x);
  (outputs["base"] * std::numeric_limits<double>::infinity()).sum().backward({}, true);
  lane_loss(outputs["sub2"], 2).backward();
  const auto gradients = take_gradients(test.net);
  EXPECT_TRUE(gradients[4].isfinite().all().item<bool>());
}

TEST(JointPass, LanesMayEnterInAnyOrderBesideTheOthers) {
  // "side" and base arrive at "c" from "b"; "late" and "later" enter there with the input.
  Network net(NetworkOptions()
                  .input({6}, at::kDouble)
                  .block("a", DenseOptions(6, 6).activation(torch::kReLU).dropout(0.3))
                  .block("b", DenseOptions(6, 6).activation(torch::kReLU).dropout(0.5))
                  .block("c", DenseOptions(6, 6).activation(torch::kReLU).dropout(0.2))
                  .block("d", DenseOptions(6, 4))
                  .subnetwork("side", SubnetworkOptions({"b", "c", "d"}))
                  .subnetwork("late", SubnetworkOptions({"c", "d"}))
                  .subnetwork("later", SubnetworkOptions({"d"}))
                  .merge(merge::mean()));
  for (const std::vector<std::string>& lanes :
       {std::vector<std::string>{"base", "side", "late", "later"},
        {"later", "late", "side", "base"},
        {"late", "base", "later", "side"},
        {"later", "base"},
        {"late", "later", "side"}}) {
    // Twice, since the second pass finds memory of the first.
    for (const uint64_t seed : {1U, 2U}) {
      torch::manual_seed(seed);
      Case test{net, at::randn({9, 6}, at::kDouble), lanes,
                std::vector<std::optional<double>>(lanes.size(), 1.0)};
      const at::Tensor before = test.x.clone();
      const auto pass_seed = next_pass_seed();
      Case reference = test;
      reference.x = test.x.clone().set_requires_grad(true);
      const Gradients expected = reference_gradients(reference, pass_seed);
      const Outputs outputs = net->joint(test.x, lanes);
      total_loss(test, outputs).backward();
      const auto actual = take_gradients(net);
      for (size_t i = 0; i < actual.size(); ++i) {
        expect_close(actual[i], expected.parameters[i], 1e-10, std::to_string(i));
      }
      expect_same_bits(test.x, before, "the input");
    }
  }
}

TEST(JointPass, PassesAccumulateTheirMergedGradients) {
  Case test = small_case(merge::mean());
  std::vector<at::Tensor> expected;
  for (int i = 0; i < 3; ++i) {
    total_loss(test, test.net->joint(test.x + i)).backward();
    const auto merged = take_gradients(test.net);
    for (size_t p = 0; p < merged.size(); ++p) {
      i == 0 ? expected.push_back(merged[p]) : void(expected[p] = expected[p] + merged[p]);
    }
  }
  for (int i = 0; i < 3; ++i) total_loss(test, test.net->joint(test.x + i)).backward();
  const auto accumulated = take_gradients(test.net);
  for (size_t p = 0; p < expected.size(); ++p) expect_close(accumulated[p], expected[p], 1e-13);
}

TEST(JointPass, GradientsAreTheirOwnTensors) {
  Case test = small_case(merge::mean());
  total_loss(test, test.net->joint(test.x)).backward();
  const auto gradients = take_gradients(test.net);
  for (size_t a = 0; a < gradients.size(); ++a) {
    EXPECT_TRUE(gradients[a].is_contiguous());
    for (size_t b = 0; b < a; ++b) EXPECT_FALSE(gradients[a].is_alias_of(gradients[b]));
  }
}

TEST(JointPass, BackwardTwiceNeedsARetainedGraph) {
  Case test = small_case(merge::mean());
  const at::Tensor loss = total_loss(test, test.net->joint(test.x));
  loss.backward({}, /*retain_graph=*/true);
  const auto once = take_gradients(test.net);
  loss.backward();
  const auto again = take_gradients(test.net);
  for (size_t i = 0; i < once.size(); ++i) expect_same_bits(again[i], once[i]);
  expect_throws_with<c10::Error>([&] { loss.backward(); }, {"backward through the graph a second"});
}

TEST(JointPass, EachBackwardMergesWhatItBrings) {
  Case test = small_case(merge::mean());
  const auto plain = plain_gradients(test.net, test.x);
  const auto outputs = test.net->joint(test.x);
  lane_loss(outputs["base"], 0).backward({}, /*retain_graph=*/true);
  lane_loss(outputs["sub2"], 2).backward();
  expect_close(take_gradients(test.net)[4], plain[0][4] / 3 + plain[2][4] / 3, 1e-12);
}

TEST(JointPass, UpdatesBetweenForwardAndBackwardAreNoticed) {
  Case test = small_case(merge::mean());
  const at::Tensor loss = total_loss(test, test.net->joint(test.x));
  {
    const torch::NoGradGuard no_grad;
    test.net->parameters()[2].add_(1.0);
  }
  expect_throws_with<c10::Error>([&] { loss.backward(); }, {"modified by an inplace operation"});
}

TEST(JointPass, TakesInputsThatAreNotContiguous) {
  Case test = small_case(merge::two_smallest_mean());
  total_loss(test, test.net->joint(test.x)).backward();
  const auto expected = take_gradients(test.net);
  const at::Tensor transposed = test.x.t().contiguous().t();
  const at::Tensor strided = at::stack({test.x, test.x + 1}, 2).select(2, 0);
  const at::Tensor row = test.x.slice(0, 0, 1);
  for (const at::Tensor& x : {transposed, strided}) {
    ASSERT_FALSE(x.is_contiguous());
    total_loss(test, test.net->joint(x)).backward();
    const auto actual = take_gradients(test.net);
    for (size_t i = 0; i < expected.size(); ++i) expect_close(actual[i], expected[i], 1e-13);
  }
  const auto wide = test.net->joint(row.expand({3, 5}));
  const auto narrow = test.net->joint(row);
  expect_close(wide["base"].slice(0, 2, 3), narrow["base"], 1e-13);
}

// -------------------------------------------------------------------------------------------------
// Second derivatives

/// tanh and ReLU, so that the second derivative has terms of both kinds.
Network curved(const merge::Rule& rule) {
  torch::manual_seed(9);
  return Network(NetworkOptions()
                     .input({4}, at::kDouble)
                     .block("a", DenseOptions(4, 4).activation(torch::kTanh))
                     .block("b", DenseOptions(4, 4).activation(torch::kReLU))
                     .block("c", DenseOptions(4, 2).activation(torch::kSigmoid))
                     .subnetwork("sub1", SubnetworkOptions({"a", "c"}))
                     .subnetwork("sub2", SubnetworkOptions({"c"}))
                     .merge(rule));
}

/// First and second derivative of the lanes' summed loss: the second of <g, v>, v a fixed pattern.
struct Derivatives {
  std::vector<at::Tensor> first, second;
};

template <typename Forward>
Derivatives differentiate(const std::vector<at::Tensor>& leaves, const Forward& loss) {
  Derivatives result;
  result.first = torch::autograd::grad({loss()}, leaves, {}, /*retain_graph=*/true,
                                       /*create_graph=*/true, /*allow_unused=*/true);
  at::Tensor product = at::zeros({}, at::kDouble);
  for (const at::Tensor& gradient : result.first) {
    if (gradient.defined()) {
      product = product + lane_loss(gradient, 3);
    }
  }
  result.second = torch::autograd::grad({product}, leaves, {}, /*retain_graph=*/false,
                                        /*create_graph=*/false, /*allow_unused=*/true);
  return result;
}

void expect_plain_second_derivative(Network net, const std::vector<std::string>& lanes) {
  const at::Tensor x = at::randn({3, 4}, at::kDouble).set_requires_grad(true);
  std::vector<at::Tensor> leaves = net->parameters();
  leaves.push_back(x);
  const auto actual = differentiate(leaves, [&] {
    const auto outputs = net->joint(x, lanes);
    at::Tensor total = at::zeros({}, at::kDouble);
    for (size_t i = 0; i < lanes.size(); ++i) total = total + lane_loss(outputs[lanes[i]], i);
    return total;
  });
  const auto expected = differentiate(leaves, [&] {
    at::Tensor total = at::zeros({}, at::kDouble);
    for (size_t i = 0; i < lanes.size(); ++i) {
      total = total +
              lane_loss(
                  plain_forward(net->core(), net->parameter_table(), x, lanes[i], std::nullopt), i);
    }
    return total;
  });
  for (size_t i = 0; i < leaves.size(); ++i) {
    expect_close(actual.first[i], expected.first[i], 1e-10, "first " + std::to_string(i));
    expect_close(actual.second[i], expected.second[i], 1e-8, "second " + std::to_string(i));
  }
}

TEST(SecondDerivative, OfSumIsThePlainOne) {
  expect_plain_second_derivative(curved(merge::sum()), {"base", "sub1", "sub2"});
  expect_plain_second_derivative(curved(merge::sum()), {"sub2", "base"});
}

TEST(SecondDerivative, OfASingleLaneIsThePlainOne) {
  for (const auto& rule : {merge::mean(), merge::two_smallest_mean(), merge::owner()}) {
    SCOPED_TRACE(rule.name());
    expect_plain_second_derivative(curved(rule), {"base"});
    expect_plain_second_derivative(curved(rule), {"sub1"});
  }
}

TEST(SecondDerivative, IsRefusedForOtherRulesWhileTheFirstWorks) {
  Random random(1);
  for (const std::string& name : rule_names()) {
    if (name == "sum") continue;
    SCOPED_TRACE(name);
    const auto rule = name == "weighted"
                          ? merge::weighted({{"base", 0.5}, {"sub1", 1.0}, {"sub2", 1.0}})
                          : make_rule(name, {}, random);
    Network net = curved(rule);
    const at::Tensor x = at::randn({3, 4}, at::kDouble);
    Case test{net, x, net->description().names(), {1.0, 1.0, 1.0}};
    total_loss(test, net->joint(x)).backward();
    const auto expected = take_gradients(net);
    const auto gradients =
        torch::autograd::grad({total_loss(test, net->joint(x))}, net->parameters(), {},
                              /*retain_graph=*/true, /*create_graph=*/true);
    for (size_t i = 0; i < expected.size(); ++i) {
      expect_close(gradients[i].detach(), expected[i], 1e-13, std::to_string(i));
    }
    expect_throws_with<c10::Error>([&] { gradients[4].sum().backward(); },
                                   {"second derivative", "'" + name + "'", "the rule sum"});
  }
}

TEST(SecondDerivative, PassesMasks) {
  // With dropout the mask is a constant of the pass, whatever is differentiated.
  torch::manual_seed(3);
  Network net(NetworkOptions()
                  .input({4}, at::kDouble)
                  .block("a", DenseOptions(4, 4).activation(torch::kTanh).dropout(0.4))
                  .block("b", DenseOptions(4, 4).activation(torch::kReLU).dropout(0.2))
                  .subnetwork("sub1", SubnetworkOptions({"b"})));
  const at::Tensor x = at::randn({3, 4}, at::kDouble).set_requires_grad(true);
  std::vector<at::Tensor> leaves = net->parameters();
  leaves.push_back(x);
  const uint64_t seed = next_pass_seed();
  const auto actual = differentiate(leaves, [&] {
    const auto outputs = net->joint(x);
    return lane_loss(outputs["base"], 0) + lane_loss(outputs["sub1"], 1);
  });
  const auto expected = differentiate(leaves, [&] {
    const auto table = net->parameter_table().tensors();
    return lane_loss(plain_forward(net->core(), table, x, "base", seed), 0) +
           lane_loss(plain_forward(net->core(), table, x, "sub1", seed), 1);
  });
  for (size_t i = 0; i < leaves.size(); ++i) {
    expect_close(actual.second[i], expected.second[i], 1e-8, std::to_string(i));
  }
}

}  // namespace
}  // namespace nsn::test
