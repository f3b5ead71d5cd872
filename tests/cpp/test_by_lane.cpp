#include <nsn/network/by_lane.h>

#include <algorithm>

#include "support.h"

namespace nsn::test {
namespace {

at::Tensor square_loss(const std::string& /*name*/, const at::Tensor& output) {
  return output.square().sum();
}

TEST(ByLane, GivesTheGradientsOfAJointPass) {
  size_t compared = 0;
  for (const std::string rule : {"sum", "mean", "two_smallest_mean", "owner"}) {
    for (uint64_t seed = 0; seed < 60; ++seed) {
      const Case test = random_case(seed, rule);
      Network net = test.net;
      const auto& blocks = net->description().blocks();
      const bool is_linear = std::all_of(blocks.begin(), blocks.end(),
                                         [](const auto& block) { return block.rule.is_linear(); });
      if (!is_linear) continue;
      torch::manual_seed(seed);
      at::Tensor total;
      for (const auto& output : net->joint(test.x)) {
        const at::Tensor loss = square_loss(output.key(), output.value());
        total = total.defined() ? total + loss : loss;
      }
      if (!total.requires_grad()) continue;
      total.backward();
      std::vector<at::Tensor> expected;
      for (const at::Tensor& parameter : net->parameters()) {
        expected.push_back(parameter.grad().defined() ? parameter.grad().clone() : at::Tensor());
      }
      net->zero_grad();
      torch::manual_seed(seed);
      const Outputs losses = backward_by_lane(net, test.x, square_loss);
      at::Tensor sum = at::zeros({}, total.options());
      for (const auto& loss : losses) sum += loss.value();
      expect_close(sum, total.detach(), 1e-10, "the losses");
      const auto parameters = net->parameters();
      for (size_t i = 0; i < parameters.size(); ++i) {
        if (!expected[i].defined()) continue;
        ++compared;
        expect_close(parameters[i].grad(), expected[i], 1e-10,
                     rule + ", seed " + std::to_string(seed));
      }
    }
  }
  EXPECT_GT(compared, 200U);
}

TEST(ByLane, RefusesWhatIsNoScalar) {
  const Network net(small_options(merge::mean(), 0.0, at::kDouble));
  expect_throws_with(
      [&] {
        backward_by_lane(net, at::randn({3, 5}, at::kDouble),
                         [](const std::string&, const at::Tensor& output) { return output; });
      },
      {"nsn::backward_by_lane: the loss must return a scalar, but returned a tensor of shape [3,",
       "Reduce it, for example with mean()."});
}

}  // namespace
}  // namespace nsn::test
