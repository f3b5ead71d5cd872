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
  const at::Tensor loss = joint_loss(outputs, targets, JointLossOptions().weights(weights));
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
  expect_close(second(joint_loss(outputs, targets, JointLossOptions().weight("base", 0.7))),
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
  const auto error = [](const at::Tensor& output, const at::Tensor& target) {
    return F::mse_loss(output, target);
  };
  const at::Tensor loss =
      joint_loss(outputs, targets, JointLossOptions().loss(error).weight("sub1", 0.5));
  const at::Tensor expected = F::mse_loss(outputs["base"], targets) +
                              0.5 * F::mse_loss(outputs["sub1"], targets) +
                              F::mse_loss(outputs["sub2"], targets);
  expect_close(loss, expected, 1e-14);
}

// ---- own losses and targets ---------------------------------------------------------------------

TEST(JointLoss, TakesTargetsAndLossesByName) {
  const Outputs outputs = logits({8, 4});
  const at::Tensor y = at::randint(4, {8}, at::kLong), z = at::randint(4, {8}, at::kLong);
  const at::Tensor numbers = at::randn({8, 4}, at::kDouble);
  const auto error = [](const at::Tensor& output, const at::Tensor& target) {
    return F::mse_loss(output, target);
  };
  const at::Tensor loss = joint_loss(
      outputs, std::map<std::string, at::Tensor>{{"base", y}, {"sub1", z}, {"sub2", numbers}},
      JointLossOptions().loss("sub2", error).weight("sub2", 0.5));
  expect_close(loss,
               F::cross_entropy(outputs["base"], y) + F::cross_entropy(outputs["sub1"], z) +
                   0.5 * F::mse_loss(outputs["sub2"], numbers),
               1e-14);
  expect_throws_with([&] { joint_loss(outputs, std::map<std::string, at::Tensor>{{"base", y}}); },
                     {"no targets for 'sub1'"});
  expect_throws_with([&] { joint_loss(outputs, std::map<std::string, at::Tensor>{{"best", y}}); },
                     {"a target names 'best'"});
  expect_throws_with([&] { joint_loss(outputs, y, JointLossOptions().loss("best", error)); },
                     {"a loss names 'best'"});
}

// ---- teachers and label smoothing ---------------------------------------------------------------

/// Three sub-networks: base the largest, sub2 the smallest.
Description three() {
  return NetworkOptions()
      .input({4})
      .block("a", DenseOptions(4, 4))
      .block("b", DenseOptions(4, 4))
      .block("c", DenseOptions(4, 4))
      .subnetwork("sub2", SubnetworkOptions({"c"}))
      .subnetwork("sub1", SubnetworkOptions({"b", "c"}));
}

/// (1 - a) * cross entropy + a * T^2 * cross entropy from `teacher`, by torch alone.
at::Tensor taught(const at::Tensor& z, const at::Tensor& y, const at::Tensor& teacher, double a,
                  double t, double smoothing) {
  const auto options = F::CrossEntropyFuncOptions().label_smoothing(smoothing);
  const at::Tensor hard = F::cross_entropy(z, y, options);
  if (a == 0.0) return hard;
  const at::Tensor each = -(teacher * at::log_softmax(z / t, 1)).sum(1);
  const at::Tensor counts = y.ne(-100);
  return (1.0 - a) * hard + a * t * t * (each * counts).sum() / counts.sum();
}

at::Tensor softened(const at::Tensor& z, double t) { return at::softmax(z.detach() / t, 1); }

class Teaching : public testing::TestWithParam<std::tuple<double, double, int64_t, bool>> {};

TEST_P(Teaching, IsWhatTorchSays) {
  const auto [t, smoothing, classes, positions] = GetParam();
  const Outputs outputs = positions ? logits({6, classes, 3}) : logits({6, classes});
  at::Tensor y =
      positions ? at::randint(classes, {6, 3}, at::kLong) : at::randint(classes, {6}, at::kLong);
  y[1].fill_(-100);
  const at::Tensor outside = at::randn_like(outputs["base"]);
  const Description description = three();
  std::map<std::string, at::Tensor> said;
  for (const auto& output : outputs) said[output.key()] = softened(output.value(), t);
  using Teachers = std::map<std::string, at::Tensor>;
  const std::vector<std::pair<teach::Teacher, Teachers>> cases = {
      {teach::base(description), {{"sub1", said["base"]}, {"sub2", said["base"]}}},
      {teach::next_larger(description), {{"sub1", said["base"]}, {"sub2", said["sub1"]}}},
      {teach::mutual(description),
       {{"base", (said["sub1"] + said["sub2"]) / 2},
        {"sub1", (said["base"] + said["sub2"]) / 2},
        {"sub2", (said["base"] + said["sub1"]) / 2}}},
      {teach::outside(description, outside),
       {{"base", softened(outside, t)},
        {"sub1", softened(outside, t)},
        {"sub2", softened(outside, t)}}}};
  for (auto [teacher, teachers] : cases) {
    teacher.weight(0.3).weight("sub2", 0.8).temperature(t);
    at::Tensor expected = at::zeros({}, at::kDouble);
    std::vector<at::Tensor> leaves;
    for (const auto& output : outputs) {
      const std::string& name = output.key();
      const double a = teachers.count(name) == 0 ? 0.0 : name == "sub2" ? 0.8 : 0.3;
      expected =
          expected + (name == "sub1" ? 0.5 : 1.0) * taught(output.value(), y, teachers[name], a, t,
                                                           name == "base" ? 0.3 : smoothing);
      leaves.push_back(output.value());
    }
    const auto options = JointLossOptions()
                             .teach(teacher)
                             .weight("sub1", 0.5)
                             .label_smoothing(smoothing)
                             .label_smoothing("base", 0.3);
    for (const bool plain : {false, true}) {
      std::optional<functional::PlainGuard> guard;
      if (plain) guard.emplace();
      const at::Tensor loss = joint_loss(outputs, y, options);
      expect_close(loss, expected, 1e-12, teacher.name());
      const auto found = torch::autograd::grad({loss}, leaves);
      const auto wanted = torch::autograd::grad({expected}, leaves, {}, /*retain_graph=*/true);
      for (size_t i = 0; i < leaves.size(); ++i) {
        expect_close(found[i], wanted[i], 1e-12, std::string(teacher.name()) + outputs.keys()[i]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Teaching,
                         testing::Combine(testing::Values(1.0, 4.0), testing::Values(0.0, 0.1),
                                          testing::Values(4, 300), testing::Bool()));

TEST(JointLoss, TeachingHasASecondDerivative) {
  const Outputs outputs = logits({5, 4});
  const at::Tensor targets = at::randint(4, {5}, at::kLong);
  const std::vector<at::Tensor> leaf = {outputs["sub1"]};
  const auto second = [&](const at::Tensor& loss) {
    const auto first = torch::autograd::grad({loss}, leaf, {}, true, /*create_graph=*/true)[0];
    return torch::autograd::grad({first.square().sum()}, leaf)[0];
  };
  const at::Tensor outside = at::randn({5, 4}, at::kDouble);
  for (const auto& teacher : {teach::base(three()), teach::outside(three(), outside)}) {
    const auto options = JointLossOptions()
                             .teach(teach::Teacher(teacher).temperature(2.0))
                             .label_smoothing(0.1)
                             .label_smoothing("sub1", 0.4);
    at::Tensor fused = second(joint_loss(outputs, targets, options));
    const functional::PlainGuard plain;
    expect_close(fused, second(joint_loss(outputs, targets, options)), 1e-12);
  }
}

TEST(JointLoss, TeachesNumbers) {
  const Outputs outputs = logits({8, 4});
  const at::Tensor targets = at::randn({8, 4}, at::kDouble);
  const Loss error = [](const at::Tensor& output, const at::Tensor& target) {
    return F::l1_loss(output, target);
  };
  const auto teacher = teach::mutual(three()).weight(0.25).by(teach::Distance::kSquaredError);
  const at::Tensor loss = joint_loss(outputs, targets, JointLossOptions(error).teach(teacher));
  at::Tensor expected = at::zeros({}, at::kDouble);
  const at::Tensor sum =
      outputs["base"].detach() + outputs["sub1"].detach() + outputs["sub2"].detach();
  std::vector<at::Tensor> leaves;
  for (const auto& output : outputs) {
    const at::Tensor others = (sum - output.value().detach()) / 2;
    expected = expected + 0.75 * F::l1_loss(output.value(), targets) +
               0.25 * F::mse_loss(output.value(), others);
    leaves.push_back(output.value());
  }
  expect_close(loss, expected, 1e-13);
  const auto found = torch::autograd::grad({loss}, leaves);
  const auto wanted = torch::autograd::grad({expected}, leaves);
  for (size_t i = 0; i < leaves.size(); ++i) expect_close(found[i], wanted[i], 1e-13);
}

TEST(JointLoss, TeachersOfPartsOfAPass) {
  const Outputs all = logits({6, 4});
  const at::Tensor y = at::randint(4, {6}, at::kLong);
  const auto two = outputs_of({{"sub2", all["sub2"]}, {"base", all["base"]}});
  // The next larger one that runs.
  const auto next = JointLossOptions().teach(teach::next_larger(three()));
  const auto base = JointLossOptions().teach(teach::base(three()));
  expect_close(joint_loss(two, y, next), joint_loss(two, y, base), 1e-14);
  const auto one = outputs_of({{"sub1", all["sub1"]}});
  const auto mutual = JointLossOptions().teach(teach::mutual(three()));
  expect_close(joint_loss(one, y, mutual), F::cross_entropy(all["sub1"], y), 1e-14);
  expect_throws_with([&] { joint_loss(one, y, base); },
                     {"base is the teacher", "it has 'sub1'", "Run base too"});
}

TEST(JointLoss, CallsAnOutsideTeacher) {
  const at::Tensor x = at::randn({3, 4}, at::kDouble), weight = at::randn({4, 4}, at::kDouble);
  const auto call = [&](const at::Tensor& in) { return in.mm(weight.detach().requires_grad_()); };
  EXPECT_FALSE(teach::outside(three(), call, x).output().requires_grad());
  expect_close(teach::outside(three(), call, x).output(), x.mm(weight), 1e-14);
}

TEST(JointLoss, SaysWhatIsWrongWithTeachers) {
  const Description description = three();
  const at::Tensor y = at::zeros({8}, at::kLong);
  const Outputs outputs = logits({8, 4});
  const auto with = [&](teach::Teacher teacher, JointLossOptions options = {}) {
    return [=] { joint_loss(outputs, y, JointLossOptions(options).teach(teacher)); };
  };
  auto base = teach::base(description);
  expect_throws_with([&] { base.weight(1.5); }, {"nsn::teach::base", "from 0 to 1", "1.5"});
  expect_throws_with([&] { base.weight("base", 0.5); }, {"'base'", "never learns here"});
  expect_throws_with([&] { teach::next_larger(description).weight("base", 0.5); },
                     {"never learns here"});
  expect_throws_with([&] { base.weight("sub3", 0.5); },
                     {"no sub-network 'sub3'", "'base', 'sub2', 'sub1'"});
  expect_throws_with([&] { base.temperature(0.0); }, {"temperature must be positive"});
  expect_throws_with([&] { teach::outside(description, at::Tensor()); }, {"floating tensor"});
  expect_throws_with([&] { teach::outside(description, nullptr, y); }, {"is an empty function"});
  expect_throws_with([&] { teach::Teacher(teach::Kind::kOutside, description); },
                     {"nsn::teach::outside", "output is missing"});
  expect_throws_with([&] { teach::Teacher(teach::Kind::kMutual, description, at::zeros({8, 4})); },
                     {"nsn::teach::mutual", "no output is taken"});
  expect_throws_with(with(teach::outside(description, at::zeros({8, 5}))),
                     {"'base' gives (8, 4)", "the outside teacher, which gives (8, 5)"});
  expect_throws_with(
      [&] {
        joint_loss(outputs_of({{"base", at::zeros({8, 5})}, {"sub1", at::zeros({8, 4})}}), y,
                   JointLossOptions().teach(base));
      },
      {"'sub1' gives (8, 4)", "from 'base', which gives (8, 5)"});
  expect_throws_with(
      [&] {
        joint_loss(outputs_of({{"base", at::zeros({8, 4})}, {"best", at::zeros({8, 4})}}), y,
                   JointLossOptions().teach(base));
      },
      {"no sub-network 'best'"});
  const Loss own = [](const at::Tensor& output, const at::Tensor&) { return output.sum(); };
  expect_throws_with(with(base, JointLossOptions(own)),
                     {"'sub1' has a loss that was given", "Say it where the teacher is made"});
  expect_throws_with(with(teach::Teacher(base).temperature(2.0).by(teach::Distance::kSquaredError)),
                     {"squared error", "Leave the temperature out"});
  expect_throws_with([&] { joint_loss(outputs, y, JointLossOptions(own).label_smoothing(0.1)); },
                     {"label_smoothing", "every loss was given"});
  expect_throws_with([&] { JointLossOptions().label_smoothing(1.5); }, {"between 0 and 1"});
  expect_throws_with([&] { JointLossOptions().label_smoothing("base", -0.1); },
                     {"between 0 and 1"});
  expect_throws_with(
      [&] { joint_loss(outputs, y, JointLossOptions().label_smoothing("none", 0.1)); },
      {"label_smoothing names 'none', which is not among the outputs"});
  expect_throws_with(
      [&] { joint_loss(outputs, y, JointLossOptions(own).label_smoothing("base", 0.1)); },
      {"label_smoothing names 'base'", "a loss that was given"});
}

TEST(JointLoss, SaysWhatIsWrong) {
  const at::Tensor targets = at::zeros({8}, at::kLong);
  expect_throws_with([&] { joint_loss(Outputs(), targets); }, {"no outputs"});
  expect_throws_with(
      [&] { joint_loss(logits({8, 4}), targets, JointLossOptions().weight("sub3", 1.0)); },
      {"'sub3'", "'base', 'sub1', 'sub2'"});
  const auto vector = [](const at::Tensor& output, const at::Tensor& target) {
    static_cast<void>(target);
    return output.sum(1);
  };
  expect_throws_with([&] { joint_loss(logits({8, 4}), targets, JointLossOptions(vector)); },
                     {"scalar", "[8]"});
  const auto nothing = [](const at::Tensor&, const at::Tensor&) { return at::Tensor(); };
  expect_throws_with([&] { joint_loss(logits({8, 4}), targets, JointLossOptions(nothing)); },
                     {"the loss of 'base' must return a scalar, but returned no tensor."});
  // Class indices beyond the classes, and batches that differ, are torch's own errors.
  expect_throws_with<c10::Error>([&] { joint_loss(logits({8, 4}), at::full({8}, 9, at::kLong)); },
                                 {"out of bounds"});
  expect_throws_with<c10::Error>([&] { joint_loss(logits({8, 4}), at::zeros({5}, at::kLong)); },
                                 {"batch"});
}

}  // namespace
}  // namespace nsn::test
