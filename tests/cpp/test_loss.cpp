#include <limits>

#include "support.h"

namespace nsn::test {
namespace {

namespace F = torch::nn::functional;

Outputs outputs_of(const std::vector<std::pair<std::string, at::Tensor>>& outputs) {
  Outputs result("sub-network");
  for (const auto& [name, output] : outputs) result.insert(name, output);
  return result;
}

/// Three lanes' logits of one shape.
Outputs logits(const std::vector<int64_t>& shape) {
  torch::manual_seed(6);
  std::vector<std::pair<std::string, at::Tensor>> lanes;
  for (const std::string name : {"base", "sub1", "sub2"}) {
    lanes.emplace_back(name, at::randn(shape, at::kDouble).set_requires_grad(true));
  }
  return outputs_of(lanes);
}

void expect_sum_of_cross_entropies(const Outputs& outputs, const at::Tensor& targets,
                                   const std::map<std::string, double>& weights = {}) {
  std::vector<at::Tensor> leaves;
  at::Tensor expected = at::zeros({}, at::kDouble);
  for (const auto& output : outputs) {
    const double weight = weights.count(output.key()) > 0 ? weights.at(output.key()) : 1.0;
    expected = expected + weight * F::cross_entropy(output.value(), targets);
    leaves.push_back(output.value());
  }
  const at::Tensor loss = joint_loss(outputs, targets, nullptr, weights);
  expect_close(loss, expected, 1e-12);
  const auto gradients = torch::autograd::grad({loss}, leaves);
  const auto expected_gradients = torch::autograd::grad({expected}, leaves);
  for (size_t i = 0; i < leaves.size(); ++i) {
    expect_close(gradients[i], expected_gradients[i], 1e-12, outputs.keys()[i]);
  }
}

TEST(JointLoss, IsTheSumOfCrossEntropies) {
  expect_sum_of_cross_entropies(logits({8, 4}), at::randint(4, {8}, at::kLong));
  expect_sum_of_cross_entropies(logits({1, 4}), at::randint(4, {1}, at::kLong));
  expect_sum_of_cross_entropies(outputs_of({{"base", logits({8, 4})["base"]}}),
                                at::randint(4, {8}, at::kLong));
}

TEST(JointLoss, IsTheSameByPlainOperations) {
  const functional::PlainGuard plain;
  expect_sum_of_cross_entropies(logits({8, 4}), at::randint(4, {8}, at::kLong), {{"sub2", 0.5}});
}

TEST(JointLoss, TakesManyClasses) {
  for (const int64_t classes : {256, 257, 1000}) {
    expect_sum_of_cross_entropies(logits({8, classes}), at::randint(classes, {8}, at::kLong));
  }
}

TEST(JointLoss, TakesExtremeLogits) {
  const at::Tensor targets = at::tensor({0, 1, 2, 3}, at::kLong);
  for (const double scale : {1e-300, 1e3, 1e300}) {
    expect_sum_of_cross_entropies(
        outputs_of({{"base", (at::randn({4, 4}, at::kDouble) * scale).set_requires_grad(true)}}),
        targets);
  }
  at::Tensor values = at::zeros({4, 4}, at::kDouble);
  values[1][2] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(joint_loss(outputs_of({{"base", values}}), targets).isnan().item<bool>());
}

TEST(JointLoss, ScalesWithWhatIsDoneToIt) {
  const Outputs outputs = logits({8, 4});
  const at::Tensor targets = at::randint(4, {8}, at::kLong);
  const std::vector<at::Tensor> leaf = {outputs["sub1"]};
  const at::Tensor loss = joint_loss(outputs, targets);
  const auto once = torch::autograd::grad({loss}, leaf, {}, /*retain_graph=*/true)[0];
  const auto scaled = torch::autograd::grad({loss * -2.5}, leaf, {}, /*retain_graph=*/true)[0];
  expect_close(scaled, once * -2.5, 1e-14);
  once.zero_();
  expect_close(torch::autograd::grad({loss * -2.5}, leaf)[0], scaled, 1e-14);
}

TEST(JointLoss, HasASecondDerivative) {
  const Outputs outputs = logits({5, 4});
  at::Tensor targets = at::randint(4, {5}, at::kLong);
  targets[2] = -100;
  const std::vector<at::Tensor> leaf = {outputs["base"]};
  const auto second = [&](const at::Tensor& loss) {
    const auto first = torch::autograd::grad({loss}, leaf, {}, true, /*create_graph=*/true)[0];
    return torch::autograd::grad({first.square().sum()}, leaf)[0];
  };
  expect_close(second(joint_loss(outputs, targets, nullptr, {{"base", 0.7}})),
               second(0.7 * F::cross_entropy(outputs["base"], targets)), 1e-12);
}

TEST(JointLoss, IsTheSameForOneAndTwoThreads) {
  torch::manual_seed(2);
  const Outputs outputs = outputs_of({{"a", at::randn({4000, 10})}, {"b", at::randn({4000, 10})}});
  const at::Tensor targets = at::randint(10, {4000}, at::kLong);
  at::Tensor alone;
  {
    const Threads one(1);
    alone = joint_loss(outputs, targets);
  }
  const Threads two(2);
  expect_same_bits(joint_loss(outputs, targets), alone);
}

TEST(JointLoss, TakesPositions) {
  expect_sum_of_cross_entropies(logits({3, 4, 5}), at::randint(4, {3, 5}, at::kLong));
  expect_sum_of_cross_entropies(logits({3, 4, 2, 5}), at::randint(4, {3, 2, 5}, at::kLong));
}

TEST(JointLoss, Weighs) {
  expect_sum_of_cross_entropies(logits({8, 4}), at::randint(4, {8}, at::kLong),
                                {{"sub1", 0.25}, {"base", 0.0}});
}

TEST(JointLoss, LeavesOutMinusHundred) {
  at::Tensor targets = at::randint(4, {8}, at::kLong);
  targets[0] = -100;
  targets[5] = -100;
  expect_sum_of_cross_entropies(logits({8, 4}), targets);
  at::Tensor positions = at::randint(4, {3, 5}, at::kLong);
  positions[0].fill_(-100);
  expect_sum_of_cross_entropies(logits({3, 4, 5}), positions, {{"sub2", 3.0}});
  // All left out: 0 / 0, as in torch.
  EXPECT_TRUE(joint_loss(logits({2, 4}), at::full({2}, -100, at::kLong)).isnan().item<bool>());
}

TEST(JointLoss, TakesProbabilities) {
  expect_sum_of_cross_entropies(logits({8, 4}), at::softmax(at::randn({8, 4}, at::kDouble), 1));
  expect_sum_of_cross_entropies(logits({3, 4, 5}),
                                at::softmax(at::randn({3, 4, 5}, at::kDouble), 1), {{"base", 2.0}});
}

TEST(JointLoss, TakesOutputsOfDifferentShapes) {
  torch::manual_seed(1);
  const auto outputs =
      outputs_of({{"base", at::randn({8, 4}, at::kDouble).set_requires_grad(true)},
                  {"coarse", at::randn({8, 7}, at::kDouble).set_requires_grad(true)}});
  expect_sum_of_cross_entropies(outputs, at::randint(4, {8}, at::kLong), {{"coarse", 0.5}});
}

TEST(JointLoss, TakesEmptyBatchesAsTorchDoes) {
  EXPECT_TRUE(joint_loss(logits({0, 4}), at::empty({0}, at::kLong)).isnan().item<bool>());
}

TEST(JointLoss, TakesALossOfTheCallersOwn) {
  const Outputs outputs = logits({8, 4});
  const at::Tensor targets = at::randn({8, 4}, at::kDouble);
  const at::Tensor loss = joint_loss(outputs, targets,
                                     [](const at::Tensor& output, const at::Tensor& target) {
                                       return F::mse_loss(output, target);
                                     },
                                     {{"sub1", 0.5}});
  const at::Tensor expected = F::mse_loss(outputs["base"], targets) +
                              0.5 * F::mse_loss(outputs["sub1"], targets) +
                              F::mse_loss(outputs["sub2"], targets);
  expect_close(loss, expected, 1e-14);
}

TEST(JointLoss, SaysWhatIsWrong) {
  const at::Tensor targets = at::zeros({8}, at::kLong);
  expect_throws_with([&] { joint_loss(Outputs(), targets); }, {"no outputs"});
  expect_throws_with([&] { joint_loss(logits({8, 4}), targets, nullptr, {{"sub3", 1.0}}); },
                     {"'sub3'", "'base', 'sub1', 'sub2'"});
  const auto vector = [](const at::Tensor& output, const at::Tensor& target) {
    static_cast<void>(target);
    return output.sum(1);
  };
  expect_throws_with([&] { joint_loss(logits({8, 4}), targets, vector); }, {"scalar", "[8]"});
  const auto nothing = [](const at::Tensor&, const at::Tensor&) { return at::Tensor(); };
  expect_throws_with([&] { joint_loss(logits({8, 4}), targets, nothing); }, {"scalar"});
  // Class indices beyond the classes, and batches that differ, are torch's own errors.
  expect_throws_with<c10::Error>([&] { joint_loss(logits({8, 4}), at::full({8}, 9, at::kLong)); },
                                 {"out of bounds"});
  expect_throws_with<c10::Error>([&] { joint_loss(logits({8, 4}), at::zeros({5}, at::kLong)); },
                                 {"batch"});
}

}  // namespace
}  // namespace nsn::test
