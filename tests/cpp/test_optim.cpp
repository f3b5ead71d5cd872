#include <limits>
#include <map>

#include "support.h"

namespace nsn::test {
namespace {

/// The paper's shape in small: hidden1, hidden2, output; sub1 and sub2 drop at the input side.
Network paper(const merge::Rule& rule = merge::two_smallest_mean()) {
  torch::manual_seed(0);
  return Network(small_options(rule));
}

/// The decay of each parameter, by name.
std::map<std::string, double> decays(const Network& net, double decay, const std::string& of) {
  const auto names = net->description().parameter_names();
  std::map<std::string, double> result;
  for (const DecayGroup& group : decay_groups(net->parameter_table(), decay, of)) {
    EXPECT_EQ(group.places.size(), group.parameters.size());
    for (size_t i = 0; i < group.places.size(); ++i) {
      EXPECT_TRUE(group.parameters[i].is_same(net->parameter_table()[group.places[i]]));
      EXPECT_TRUE(result.emplace(names[group.places[i]], group.weight_decay).second);
    }
  }
  EXPECT_EQ(result.size(), names.size());
  return result;
}

TEST(DecayGroups, DecayWeightsAndNoBiases) {
  const auto all = decays(paper(), 1e-3, "");
  for (const std::string block : {"hidden1", "hidden2", "output"}) {
    EXPECT_EQ(all.at(block + ".weight"), 1e-3);
    EXPECT_EQ(all.at(block + ".bias"), 0.0);
  }
}

TEST(DecayGroups, OfBaseAreThePapersNumbers) {
  const auto all = decays(paper(), 9e-5, "base");
  EXPECT_DOUBLE_EQ(all.at("hidden1.weight"), 9e-5);
  EXPECT_DOUBLE_EQ(all.at("hidden2.weight"), 4.5e-5);
  EXPECT_EQ(all.at("output.weight"), 0.0);
  EXPECT_EQ(all.at("hidden1.bias"), 0.0);
  const auto groups = decay_groups(paper()->parameter_table(), 9e-5, "base");
  ASSERT_EQ(groups.size(), 3U);
  EXPECT_EQ(groups.back().weight_decay, 0.0) << "those without decay come last";
}

TEST(DecayGroups, StandForAnL2TermInOneLoss) {
  // A step with decay equals a step with the term weight_decay / 2 |W|^2 in the loss of `of`.
  for (const std::string of : {"base", "sub1", "sub2"}) {
    SCOPED_TRACE(of);
    constexpr double kDecay = 0.2;
    Network net = paper();
    const at::Tensor x = at::randn({4, 5}, at::kDouble);
    const auto names = net->description().names();
    std::vector<std::vector<at::Tensor>> of_lanes;
    for (size_t lane = 0; lane < names.size(); ++lane) {
      std::vector<at::Tensor> leaves;
      for (const at::Tensor& parameter : net->parameter_table()) {
        leaves.push_back(parameter.detach().clone().set_requires_grad(true));
      }
      at::Tensor loss =
          lane_loss(plain_forward(net->core(), leaves, x, names[lane], std::nullopt), lane);
      if (names[lane] == of) {
        for (size_t place = 2 * lane; place < 6; place += 2) {
          loss = loss + kDecay / 2 * leaves[place].square().sum();
        }
      }
      loss.backward();
      of_lanes.emplace_back();
      for (const at::Tensor& leaf : leaves) of_lanes.back().push_back(leaf.grad());
    }
    const auto merged = merge_all_plainly(net->description(), names, of_lanes);
    std::vector<at::Tensor> expected;
    for (size_t i = 0; i < merged.size(); ++i) {
      expected.push_back(net->parameter_table()[i].detach() - 0.1 * merged[i]);
    }
    const torch::optim::SGDOptions options(0.1);
    torch::optim::SGD optimizer(param_groups(net, options, kDecay, of), options);
    const auto outputs = net->joint(x);
    at::Tensor loss = at::zeros({}, at::kDouble);
    for (size_t lane = 0; lane < names.size(); ++lane) {
      loss = loss + lane_loss(outputs[names[lane]], lane);
    }
    loss.backward();
    optimizer.step();
    for (size_t i = 0; i < expected.size(); ++i) {
      expect_close(net->parameter_table()[i].detach(), expected[i], 1e-12);
    }
  }
}

TEST(ParamGroups, CarryTheOptions) {
  Network net = paper();
  const auto groups =
      param_groups(net, torch::optim::AdamWOptions(0.02).eps(1e-5).weight_decay(0.5), 9e-5, "base");
  ASSERT_EQ(groups.size(), 3U);
  std::vector<double> found;
  for (const auto& group : groups) {
    const auto& options = static_cast<const torch::optim::AdamWOptions&>(group.options());
    EXPECT_EQ(options.lr(), 0.02);
    EXPECT_EQ(options.eps(), 1e-5);
    found.push_back(options.weight_decay());
  }
  EXPECT_DOUBLE_EQ(found[0], 9e-5);
  EXPECT_DOUBLE_EQ(found[1], 4.5e-5);
  EXPECT_EQ(found[2], 0.0);
}

TEST(DecayGroups, SayWhatIsWrong) {
  expect_throws_with([] { decays(paper(), -1.0, ""); }, {"weight_decay", "-1"});
  expect_throws_with([] { decays(paper(), std::numeric_limits<double>::quiet_NaN(), ""); },
                     {"weight_decay", "nan"});
  expect_throws_with([] { decays(paper(), 1.0, "nobody"); }, {"'nobody'", "'base'"});
  Random random(0);
  expect_throws_with([&] { decays(paper(make_rule("median", {}, random)), 1.0, "base"); },
                     {"'median'", "no coefficients"});
  expect_throws_with(
      [] {
        decays(paper(merge::weighted({{"base", -1.0}, {"sub1", 1.0}, {"sub2", 1.0}})), 1.0, "base");
      },
      {"'base'", "negative"});
}

}  // namespace
}  // namespace nsn::test
