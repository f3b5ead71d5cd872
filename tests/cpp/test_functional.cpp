#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/forward_grad.h>

#include "support.h"

// functional::share and functional::linear on their own.

namespace nsn::test {
namespace {

using functional::linear;
using functional::share;
using merge::Lane;
using merge::Slice;

const std::vector<Lane> kLanes = {{"base", 2}, {"sub1", 1}, {"sub2", 0}};
const std::vector<Slice> kCrossing = {{2, 2}, {2, 1}, {1, 2}};

at::Tensor parameter(at::IntArrayRef shape) {
  torch::manual_seed(2);
  return at::randn(shape, at::kDouble).set_requires_grad(true);
}

TEST(Share, GivesViewsOfTheParameter) {
  const at::Tensor w = parameter({2, 2});
  const auto shared = share(w, kCrossing, merge::mean(), kLanes);
  ASSERT_EQ(shared.size(), 3U);
  for (size_t lane = 0; lane < 3; ++lane) {
    EXPECT_EQ(shared[lane].data_ptr(), w.data_ptr());
    EXPECT_EQ(shared[lane].sizes(), at::IntArrayRef(kCrossing[lane]));
    EXPECT_TRUE(shared[lane].requires_grad());
  }
  const torch::NoGradGuard no_grad;
  for (const at::Tensor& lane : share(w, kCrossing, merge::mean(), kLanes)) {
    EXPECT_EQ(lane.data_ptr(), w.data_ptr());
    EXPECT_FALSE((lane * 2).requires_grad());
  }
}

TEST(Share, MergesCrossingSlicesByRegion) {
  // The gradients of merge.h's example, 6, 3 and 1: base uses all, sub1 the left column, sub2 the
  // top row.
  const auto merged = [](const merge::Rule& rule) {
    const at::Tensor w = parameter({2, 2});
    const auto shared = share(w, kCrossing, rule, kLanes);
    (shared[0].sum() * 6 + shared[1].sum() * 3 + shared[2].sum()).backward();
    return w.grad();
  };
  const auto matrix = [](double a, double b, double c, double d) {
    return at::tensor(std::vector<double>{a, b, c, d}, at::kDouble).view({2, 2});
  };
  expect_close(merged(merge::sum()), matrix(10, 7, 9, 6), 1e-14, "sum");
  expect_close(merged(merge::mean()), matrix(10.0 / 3, 3.5, 4.5, 6), 1e-14, "mean");
  expect_close(merged(merge::two_smallest_mean()), matrix(2, 3.5, 4.5, 6), 1e-14, "two smallest");
  expect_close(merged(merge::owner()), matrix(1, 1, 3, 6), 1e-14, "owner");
  expect_close(merged(merge::weighted({{"base", 0.5}, {"sub1", 1.0}, {"sub2", 2.0}})),
               matrix(8, 5, 6, 3), 1e-14, "weighted");
}

TEST(Share, OrdersLanesOfOnesOwnBySliceThenPosition) {
  const auto merged = [](const merge::Rule& rule, const std::vector<std::string>& names) {
    const at::Tensor w = parameter({3});
    const auto lanes = nsn::share(w, {{3}, {1}, {3}}, rule, names);
    (lanes[0].sum() * 6 + lanes[1].sum() * 3 + lanes[2].sum()).backward();
    return w.grad();
  };
  const auto vector = [](double a, double b, double c) {
    return at::tensor(std::vector<double>{a, b, c}, at::kDouble);
  };
  expect_close(merged(merge::owner(), {}), vector(3, 6, 6), 1e-14, "owner");
  expect_close(merged(merge::weighted({{"0", 1.0}, {"1", 2.0}, {"2", 3.0}}), {}), vector(15, 9, 9),
               1e-14, "weighted, numbered");
  expect_close(merged(merge::weighted({{"a", 1.0}, {"b", 0.0}, {"c", -1.0}}), {"a", "b", "c"}),
               vector(5, 5, 5), 1e-14, "weighted, named");
  expect_throws_with([] { nsn::share(parameter({3}), {{3}}, merge::sum(), {"a", "b"}); },
                     {"one name for each slice", "2 names and 1 slices"});
}

TEST(Share, ServesFunctionRules) {
  // What a narrow lane does not cover is its own affair: here the larger gradient wins.
  const auto rule = merge::function("max", [](const std::vector<merge::LaneGradient>& all) {
    at::Tensor result = at::full(all[0].parameter_shape, -1.0, at::kDouble);
    for (const auto& lane : all) {
      at::Tensor part = result.narrow(0, 0, lane.slice[0]).narrow(1, 0, lane.slice[1]);
      part.copy_(at::maximum(part, lane.gradient));
    }
    return result;
  });
  const at::Tensor w = parameter({2, 3});
  const auto shared = share(w, {{1, 3}, {2, 1}}, rule, {{"a", 0}, {"b", 1}});
  (shared[0].sum() * 2 + shared[1].sum() * 5).backward();
  expect_close(w.grad(), at::tensor({5.0, 2.0, 2.0, 5.0, -1.0, -1.0}, at::kDouble).view({2, 3}),
               1e-14);
}

TEST(Share, UnusedLanesCountAsZeroAndNoneGivesNone) {
  const at::Tensor w = parameter({2, 2}), v = parameter({1});
  const auto shared = share(w, kCrossing, merge::mean(), kLanes);
  (shared[1].sum() * 3 + v.sum()).backward();
  expect_close(w.grad(), at::tensor({1.0, 0.0, 1.5, 0.0}, at::kDouble).view({2, 2}), 1e-14);
  w.mutable_grad().reset();
  const auto unused = share(w, kCrossing, merge::mean(), kLanes);
  v.sum().backward();
  EXPECT_FALSE(w.grad().defined());
}

TEST(Share, SumsAllUsesOfALane) {
  const at::Tensor w = parameter({3});
  const auto shared = share(w, {{3}, {2}}, merge::mean(), {{"a", 1}, {"b", 0}});
  (shared[0].sum() + 2 * shared[0].sum() + (shared[1] * 4).sum()).backward();
  expect_close(w.grad(), at::tensor({3.5, 3.5, 3.0}, at::kDouble), 1e-14);
}

TEST(Share, TakesScalarsAndFourDimensions) {
  const at::Tensor scalar = parameter({});
  const auto two = share(scalar, {Slice{}, Slice{}}, merge::mean(), {{"a", 0}, {"b", 1}});
  (two[0] * 2 + two[1] * 4).backward();
  EXPECT_DOUBLE_EQ(scalar.grad().item<double>(), 3.0);
  const at::Tensor kernel = parameter({4, 3, 2, 2});
  const auto lanes =
      share(kernel, {{4, 3, 2, 2}, {2, 1, 2, 2}}, merge::owner(), {{"base", 1}, {"sub", 0}});
  (lanes[0].sum() + lanes[1].sum() * 5).backward();
  at::Tensor expected = at::ones({4, 3, 2, 2}, at::kDouble);
  expected.narrow(0, 0, 2).narrow(1, 0, 1).fill_(5.0);
  expect_same_bits(kernel.grad(), expected);
}

TEST(Share, NoticesUpdatesInPlace) {
  const at::Tensor w = parameter({2, 2});
  const auto shared = share(w, kCrossing, merge::mean(), kLanes);
  const at::Tensor loss = shared[1].square().sum() + shared[0].square().sum();
  {
    const torch::NoGradGuard no_grad;
    w.add_(1.0);
  }
  expect_throws_with<c10::Error>([&] { loss.backward(); }, {"modified inplace"});
}

TEST(Share, SecondDerivativeOfSumIsThePlainOne) {
  const at::Tensor w = parameter({2, 2});
  const auto second = [&](const std::vector<at::Tensor>& lanes) {
    const at::Tensor loss = lanes[0].pow(3).sum() + lanes[1].exp().sum() + lanes[2].sin().sum();
    const at::Tensor first = torch::autograd::grad({loss}, {w}, {}, true, true)[0];
    return torch::autograd::grad({first.square().sum()}, {w})[0];
  };
  const auto plain = second({w, w.narrow(1, 0, 1), w.narrow(0, 0, 1)});
  expect_close(second(share(w, kCrossing, merge::sum(), kLanes)), plain, 1e-10);
}

TEST(Share, SecondDerivativeOfASingleLaneIsThePlainOne) {
  const at::Tensor w = parameter({2, 2});
  for (const auto& rule : {merge::mean(), merge::owner(), merge::two_smallest_mean()}) {
    const auto lane = share(w, {{2, 1}}, rule, {{"sub", 0}})[0];
    const auto first = torch::autograd::grad({lane.pow(3).sum()}, {w}, {}, true, true)[0];
    const auto second = torch::autograd::grad({first.sum()}, {w})[0];
    at::Tensor expected = at::zeros({2, 2}, at::kDouble);
    expected.narrow(1, 0, 1).copy_(6 * w.detach().narrow(1, 0, 1));
    expect_close(second, expected, 1e-12, rule.name());
  }
}

TEST(Share, RefusesOtherSecondDerivatives) {
  const at::Tensor w = parameter({2, 2});
  Random random(0);
  for (const std::string name : {"mean", "two_smallest_mean", "owner", "ramp"}) {
    SCOPED_TRACE(name);
    const std::vector<Slice> whole(3, Slice{2, 2});
    const auto shared = share(w, whole, make_rule(name, {}, random), kLanes);
    const auto first = torch::autograd::grad(
        {shared[0].square().sum() + shared[1].square().sum() + shared[2].square().sum()}, {w}, {},
        true, true)[0];
    EXPECT_TRUE(first.requires_grad());
    expect_throws_with<c10::Error>(
        [&] { first.sum().backward(); },
        {"second derivative", '\'' + std::string(name) + '\'', "not the gradient of one function"});
  }
}

TEST(Share, SaysWhatIsWrong) {
  const at::Tensor w = parameter({2, 2});
  const auto one = [&](const Slice& slice) { share(w, {slice}, merge::sum(), {{"a", 0}}); };
  expect_throws_with([&] { one({2}); }, {"nsn::share", "[2]", "[2, 2]"});
  expect_throws_with([&] { one({2, 0}); }, {"[2, 0]", "from 1"});
  expect_throws_with([&] { one({3, 1}); }, {"[3, 1]", "[2, 2]"});
  expect_throws_with([&] { one({-1, 1}); }, {"[-1, 1]"});
  expect_throws_with([&] { share(w, {}, merge::sum(), {}); }, {"at least one slice"});
  expect_throws_with([&] { share(w, {{2, 2}}, merge::sum(), kLanes); }, {"3 lanes", "1 slices"});
  expect_throws_with([&] { share({}, {{2, 2}}, merge::sum(), {{"a", 0}}); }, {"undefined"});
}

TEST(ForwardMode, IsRefused) {
  using torch::autograd::ForwardADLevel;
  const uint64_t level = ForwardADLevel::get_next_idx();
  {
    const at::Tensor w = at::_make_dual(at::randn({2, 2}), at::ones({2, 2}), level);
    const at::Tensor x = at::randn({3, 2});
    const std::vector<std::string> parts = {"forward-mode", "backward()"};
    expect_throws_with<c10::Error>([&] { share(w, {{2, 2}}, merge::sum(), {{"a", 0}}); }, parts);
    expect_throws_with<c10::Error>([&] { linear({x}, w, {}, {{{"a", 0}}, merge::sum()}); }, parts);
    expect_throws_with<c10::Error>(
        [&] { functional::relu_dropout({w}, {true, {functional::Dropout()}, {0}}); }, parts);
  }
  ForwardADLevel::release_idx(level);
}

// -------------------------------------------------------------------------------------------------
// linear

TEST(Linear, ComputesEachLaneAsTorch) {
  const at::Tensor w = parameter({3, 4}), b = parameter({3});
  const std::vector<at::Tensor> inputs = {
      at::randn({5, 4}, at::kDouble), at::randn({2, 7, 4}, at::kDouble),
      at::randn({0, 4}, at::kDouble), at::randn({4, 2}, at::kDouble).t(),
      at::randn({4}, at::kDouble)};
  const std::vector<Lane> lanes = {{"a", 0}, {"b", 1}, {"c", 2}, {"d", 3}, {"e", 4}};
  for (const at::Tensor& bias : {b, at::Tensor()}) {
    const auto outputs = linear(inputs, w, bias, {lanes, merge::mean()});
    for (size_t i = 0; i < inputs.size(); ++i) {
      expect_close(outputs[i].detach(), at::linear(inputs[i], w, bias).detach(), 1e-13,
                   std::to_string(i));
    }
  }
}

TEST(Linear, LanesOfOneInputShareTheForward) {
  const at::Tensor w = parameter({3, 4});
  const at::Tensor x = at::randn({5, 4}, at::kDouble), other = at::randn({5, 4}, at::kDouble);
  const std::vector<Lane> lanes = {{"a", 0}, {"b", 1}, {"c", 2}};
  const auto outputs = linear({x, other, x}, w, {}, {lanes, merge::mean(), {}, {0, 1, 0}});
  EXPECT_EQ(outputs[0].data_ptr(), outputs[2].data_ptr());
  EXPECT_NE(outputs[0].data_ptr(), outputs[1].data_ptr());
  (outputs[0].sum() * 3 + outputs[1].sum() * 6 + outputs[2].sum() * 9).backward();
  const at::Tensor rows = (12 * x.sum(0) + 6 * other.sum(0)) / 3;
  expect_close(w.grad(), rows.expand({3, 4}), 1e-12);
}

TEST(Linear, NarrowerLanesOfOneInputHaveTheWidestsColumns) {
  const at::Tensor w = parameter({6, 4}), b = parameter({6});
  const at::Tensor x = at::randn({5, 4}, at::kDouble);
  const std::vector<Lane> lanes = {{"a", 1}, {"b", 2}, {"c", 0}};
  const std::vector<Layout> slices = {{{6, 3}, 4}, {6, 4}, {{6, 1}, 4}};
  for (const bool relu : {false, true}) {
    const functional::ReluDropout after{relu, std::vector<functional::Dropout>(3), {0, 1, 2}};
    const auto outputs = linear({x, x, x}, w, b, {lanes, merge::sum(), slices, {0, 0, 0}}, after);
    at::Tensor expected = at::linear(x, w, b).detach();
    if (relu) expected = at::relu(expected);
    for (const size_t i : {0, 1, 2}) {
      const int64_t width = slices[i][0].kept();
      expect_close(outputs[i].detach(), expected.narrow(1, 0, width), 1e-13, std::to_string(i));
      EXPECT_TRUE(outputs[i].is_alias_of(outputs[1])) << "one forward serves all";
    }
    (outputs[0].sum() + 2 * outputs[1].sum() + 4 * outputs[2].sum()).backward();
    const at::Tensor factors = at::tensor({7.0, 3.0, 3.0, 2.0, 2.0, 2.0}, at::kDouble);
    const at::Tensor dy =
        (relu ? expected.gt(0).to(at::kDouble) : at::ones_like(expected)) * factors;
    expect_close(w.grad(), dy.t().mm(x), 1e-12);
    expect_close(b.grad(), dy.sum(0), 1e-12);
    w.mutable_grad().reset();
    b.mutable_grad().reset();
  }
}

TEST(Linear, LargeProductsOfFloatsAreTorchs) {
  // Large enough for the block-wise products, with rows that no block size divides.
  torch::manual_seed(6);
  const at::Tensor w = at::randn({600, 530}).set_requires_grad(true);
  const at::Tensor b = at::randn({600}).set_requires_grad(true);
  const at::Tensor x = at::randn({615, 530}).set_requires_grad(true);
  const at::Tensor narrow = at::randn({70, 520}).set_requires_grad(true);
  const std::vector<Lane> lanes = {{"a", 1}, {"b", 0}};
  const std::vector<Layout> slices = {{600, 530}, {{600, 301}, {530, 520}}};
  const auto loss = [](const at::Tensor& wide, const at::Tensor& thin) {
    return wide.sin().sum() + (thin * 0.5).cos().sum();
  };
  for (const bool plain : {false, true}) {
    std::optional<functional::PlainGuard> guard;
    if (plain) guard.emplace();
    const auto outputs = linear({x, narrow}, w, b, {lanes, merge::sum(), slices});
    const auto actual = torch::autograd::grad({loss(outputs[0], outputs[1])}, {w, b, x, narrow});
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& each : {w, b, x, narrow}) {
      leaves.push_back(each.detach().to(at::kDouble).set_requires_grad(true));
    }
    const at::Tensor wide = at::linear(leaves[2], leaves[0], leaves[1]);
    const at::Tensor thin = at::linear(leaves[3], leaves[0].narrow(0, 0, 301).narrow(1, 0, 520),
                                       leaves[1].narrow(0, 0, 301));
    expect_close(outputs[0].detach().to(at::kDouble), wide.detach(), 1e-4);
    expect_close(outputs[1].detach().to(at::kDouble), thin.detach(), 1e-4);
    const auto expected = torch::autograd::grad({loss(wide, thin)}, leaves);
    for (size_t i = 0; i < leaves.size(); ++i) {
      const double scale = expected[i].abs().max().item<double>();
      expect_close(actual[i].to(at::kDouble) / scale, expected[i] / scale, 1e-4, std::to_string(i));
    }
  }
}

TEST(Linear, CrossingSlicesMergeByRegion) {
  // 2 x 4 and 4 x 2 of 4 x 4: all share the corner, each has a side for itself, nobody the rest.
  const at::Tensor w = parameter({4, 4});
  const at::Tensor wide = at::randn({3, 4}, at::kDouble), narrow = at::randn({3, 2}, at::kDouble);
  const std::vector<Lane> lanes = {{"a", 0}, {"b", 1}};
  const std::vector<Layout> slices = {{{4, 2}, 4}, {4, {4, 2}}};
  for (const auto& [rule, first, second] :
       {std::tuple(merge::sum(), 1.0, 1.0), std::tuple(merge::mean(), 0.5, 0.5),
        std::tuple(merge::owner(), 1.0, 0.0),
        std::tuple(merge::weighted({{"a", 2}, {"b", 3}}), 2.0, 3.0)}) {
    const double alone_a = rule.name() == "weighted" ? 2.0 : 1.0;
    const double alone_b = rule.name() == "weighted" ? 3.0 : 1.0;
    const auto outputs = linear({wide, narrow}, w, {}, {lanes, rule, slices});
    (outputs[0].sum() + outputs[1].sum()).backward();
    const at::Tensor a = wide.sum(0).expand({2, 4}), b = narrow.sum(0).expand({4, 2});
    at::Tensor expected = at::zeros({4, 4}, at::kDouble);
    expected.slice(0, 0, 2).slice(1, 0, 2).copy_(a.slice(1, 0, 2) * first +
                                                 b.slice(0, 0, 2) * second);
    expected.slice(0, 0, 2).slice(1, 2, 4).copy_(a.slice(1, 2, 4) * alone_a);
    expected.slice(0, 2, 4).slice(1, 0, 2).copy_(b.slice(0, 2, 4) * alone_b);
    expect_close(w.grad(), expected, 1e-12, rule.name());
    w.mutable_grad().reset();
  }
}

TEST(Linear, EmptyBatchesGiveZeroGradients) {
  const at::Tensor w = parameter({3, 4}), b = parameter({3});
  const at::Tensor x = at::empty({0, 4}, at::kDouble);
  for (const auto& rule : {merge::mean(), merge::sum(), merge::owner()}) {
    const auto outputs = linear({x, x}, w, b, {{{"a", 0}, {"b", 1}}, rule, {}, {0, 0}});
    (outputs[0].sum() + outputs[1].sum()).backward();
    expect_same_bits(w.grad(), at::zeros({3, 4}, at::kDouble), rule.name());
    expect_same_bits(b.grad(), at::zeros({3}, at::kDouble), rule.name());
    w.mutable_grad().reset();
    b.mutable_grad().reset();
  }
}

TEST(Linear, GradientsUnderAutocastHaveTheParametersDtype) {
  const at::Tensor w = at::randn({3, 4}).set_requires_grad(true);
  const at::Tensor x = at::randn({5, 4}).set_requires_grad(true);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const auto outputs = linear({x, x}, w, {}, {{{"a", 0}, {"b", 1}}, merge::mean(), {}, {0, 0}});
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(outputs[0].scalar_type(), at::kBFloat16);
  (outputs[0].sum() + outputs[1].sum()).backward();
  EXPECT_EQ(w.grad().scalar_type(), at::kFloat);
  EXPECT_EQ(x.grad().scalar_type(), at::kFloat);
  expect_close(w.grad(), x.detach().sum(0).expand({3, 4}), 0.05);
}

}  // namespace
}  // namespace nsn::test
