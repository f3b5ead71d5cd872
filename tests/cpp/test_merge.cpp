#include <algorithm>
#include <numeric>

#include "support.h"
#include "values/rules.h"

// Merge rules as values: coefficients, regions of slices, messages.

namespace nsn::test {
namespace {

using merge::Lane;
using merge::Slice;

const std::vector<Lane> kLanes = {{"base", 2}, {"sub1", 1}, {"sub2", 0}};

/// The header's worked example: gradients 6, 3 and 1 of the lanes base, sub1 and sub2, of which the
/// first `count` cover the element.
double merged_example(const merge::Rule& rule, size_t count = 3) {
  const std::vector<double> gradients = {6.0, 3.0, 1.0};
  std::vector<at::Tensor> tensors;
  for (size_t i = 0; i < count; ++i) tensors.push_back(at::full({1}, gradients[i], at::kDouble));
  const std::vector<Slice> slices(count, Slice{1});
  return merge::apply(rule, {kLanes.data(), count}, slices, tensors, {1}).item<double>();
}

TEST(MergeRule, GivesTheDocumentedExamples) {
  EXPECT_DOUBLE_EQ(merged_example(merge::sum()), 10.0);
  EXPECT_DOUBLE_EQ(merged_example(merge::mean()), 10.0 / 3.0);
  EXPECT_DOUBLE_EQ(merged_example(merge::mean(), 2), 4.5);
  EXPECT_DOUBLE_EQ(merged_example(merge::mean(), 1), 6.0);
  EXPECT_DOUBLE_EQ(merged_example(merge::two_smallest_mean()), 2.0);
  EXPECT_DOUBLE_EQ(merged_example(merge::two_smallest_mean(), 2), 4.5);
  EXPECT_DOUBLE_EQ(merged_example(merge::two_smallest_mean(), 1), 6.0);
  EXPECT_DOUBLE_EQ(merged_example(merge::owner()), 1.0);
  EXPECT_DOUBLE_EQ(merged_example(merge::owner(), 2), 3.0);
  EXPECT_DOUBLE_EQ(merged_example(merge::gradient_surgery()), 10.0);
  EXPECT_DOUBLE_EQ(merged_example(merge::equal_norms()), 10.0 / 3.0);
  const auto weighted = merge::weighted({{"base", 0.5}, {"sub1", 1.0}, {"sub2", 2.0}});
  EXPECT_DOUBLE_EQ(merged_example(weighted), 8.0);
  Random random(0);
  EXPECT_DOUBLE_EQ(merged_example(make_rule("median", {}, random)), 3.0);
}

TEST(MergeRule, SurgeryActsWhereBothSlicesReach) {
  const std::vector<Lane> two = {{"base", 1}, {"sub", 0}};
  const auto merged = [&](const at::Tensor& a, const at::Tensor& b) {
    return merge::apply(merge::gradient_surgery(), two, {{a.size(0)}, {b.size(0)}}, {a, b},
                        {a.size(0)});
  };
  // The header's example.
  expect_close(merged(at::tensor({1.0, 1.0}), at::tensor({-1.0, 0.0})), at::tensor({-0.5, 1.5}),
               1e-14);
  // The narrow one has no part in the last element, and takes nothing from it.
  expect_close(merged(at::tensor({1.0, 1.0, 7.0}), at::tensor({-1.0, 0.0})),
               at::tensor({-0.5, 1.5, 7.0}), 1e-14);
  expect_close(merged(at::tensor({1.0, 1.0}), at::tensor({0.0, 0.0})), at::tensor({1.0, 1.0}), 0.0);
}

TEST(MergeRule, NormsAreEqualOverEachSlice) {
  const std::vector<Lane> two = {{"base", 1}, {"sub", 0}};
  const at::Tensor a = at::tensor({3.0, 3.0, 3.0, 3.0}), b = at::tensor({1.0, -1.0});
  const auto rule = merge::equal_norms();
  expect_close(merge::apply(rule, two, {{4}, {2}}, {a, b}, {4}), at::tensor({2.0, 0.0, 2.0, 2.0}),
               1e-14);
  // Who gave nothing counts as a lane, as in the mean.
  expect_close(merge::apply(rule, two, {{4}, {2}}, {a, at::Tensor()}, {4}),
               at::tensor({1.5, 1.5, 3.0, 3.0}), 1e-14);
}

TEST(MergeRule, KnowsItsNameAndKind) {
  EXPECT_EQ(merge::two_smallest_mean().name(), "two_smallest_mean");
  EXPECT_TRUE(merge::weighted({{"base", 1.0}}).is_linear());
  const auto rule = merge::function(
      "mine", [](const std::vector<merge::LaneGradient>& all) { return all[0].gradient; });
  EXPECT_EQ(rule.name(), "mine");
  EXPECT_FALSE(rule.is_linear());
  EXPECT_FALSE(rule.is_missing());
  EXPECT_TRUE(static_cast<bool>(rule.merge_function()));
  EXPECT_TRUE(merge::missing_function("mine").is_missing());
  EXPECT_EQ(merge::weighted({{"b", 1.0}, {"a", 2.0}}).weights()[0].first, "b");
}

TEST(MergeRule, TheTableAndTheFactoriesAgree) {
  std::vector<merge::Rule> made = {merge::sum(),
                                   merge::mean(),
                                   merge::two_smallest_mean(),
                                   merge::owner(),
                                   merge::gradient_surgery(),
                                   merge::equal_norms(),
                                   merge::weighted({{"base", 1.0}}),
                                   merge::missing_function("function")};
  ASSERT_EQ(made.size(), merge::known_rules().size());
  for (size_t i = 0; i < made.size(); ++i) {
    const merge::KnownRule& known = merge::known_rules()[i];
    EXPECT_EQ(made[i].name(), known.name);
    EXPECT_EQ(made[i].is_linear(), known.coefficients != nullptr) << known.name;
    EXPECT_EQ(made[i].is_builtin(), known.takes != merge::Takes::kFunction) << known.name;
    EXPECT_FALSE(known.coefficients != nullptr && known.merge != nullptr) << known.name;
  }
}

TEST(MergeRule, AnEntryMayBeAFunctionOfTheGradients) {
  static constexpr merge::KnownRule kLargest = {"largest", "the largest of the gradients",
                                                merge::Takes::kNothing, nullptr,
                                                [](const std::vector<merge::LaneGradient>& all) {
                                                  at::Tensor result = all[0].padded();
                                                  for (const auto& each : all)
                                                    result = at::maximum(result, each.padded());
                                                  return result;
                                                }};
  const merge::Rule rule = merge::make_rule(kLargest);
  EXPECT_FALSE(rule.is_linear());
  EXPECT_TRUE(rule.is_builtin());
  EXPECT_FALSE(rule.is_missing());
  EXPECT_FALSE(static_cast<bool>(rule.merge_function()));
  EXPECT_DOUBLE_EQ(merged_example(rule), 6.0);
  const Description description(
      NetworkOptions().input({2}).block("only", DenseOptions(2, 2)).merge(rule));
  EXPECT_NE(description.to_json().find(R"("merge":{"rule":"largest"})"), std::string::npos);
}

TEST(MergeRule, CoefficientsFollowSizeAndNotOrder) {
  const std::vector<Lane> lanes = {{"sub1", 1}, {"base", 3}, {"sub2", 0}, {"sub3", 2}};
  EXPECT_EQ(merge::owner().coefficients(lanes), (std::vector<double>{0, 0, 1, 0}));
  EXPECT_EQ(merge::two_smallest_mean().coefficients(lanes), (std::vector<double>{0.5, 0, 0.5, 0}));
  EXPECT_EQ(merge::mean().coefficients(lanes), (std::vector<double>(4, 0.25)));
  EXPECT_EQ(merge::sum().coefficients(lanes), (std::vector<double>(4, 1.0)));
}

TEST(MergeApply, CrossingSlicesHaveCoefficientsByRegion) {
  // A 2 x 2 parameter; sub2 uses the top row, sub1 the left column, base all of it.
  //   [0][0]: all three     [0][1]: base, sub2
  //   [1][0]: base, sub1    [1][1]: base
  const std::vector<Slice> slices = {{2, 2}, {2, 1}, {1, 2}};
  const std::vector<at::Tensor> gradients = {at::full({2, 2}, 6.0), at::full({2, 1}, 3.0),
                                             at::full({1, 2}, 1.0)};
  const auto apply = [&](const merge::Rule& rule) {
    return merge::apply(rule, kLanes, slices, gradients, {2, 2});
  };
  const auto matrix = [](double a, double b, double c, double d) {
    return at::tensor(std::vector<double>{a, b, c, d}, at::kFloat).view({2, 2});
  };
  expect_close(apply(merge::sum()), matrix(10, 7, 9, 6), 1e-6, "sum");
  expect_close(apply(merge::mean()), matrix(10.0 / 3, 3.5, 4.5, 6), 1e-6, "mean");
  expect_close(apply(merge::two_smallest_mean()), matrix(2, 3.5, 4.5, 6), 1e-6, "two smallest");
  expect_close(apply(merge::owner()), matrix(1, 1, 3, 6), 1e-6, "owner");
  const auto weighted = merge::weighted({{"base", 0.5}, {"sub1", 1.0}, {"sub2", 2.0}});
  expect_close(apply(weighted), matrix(8, 5, 6, 3), 1e-6, "weighted");
}

TEST(MergeApply, ElementsThatNoLaneCoversAreExactZeros) {
  const at::Tensor merged = merge::apply(merge::mean(), {{"a", 0}, {"b", 1}}, {{1, 2}, {2, 1}},
                                         {at::ones({1, 2}), at::ones({2, 1})}, {2, 3});
  expect_same_bits(merged, at::tensor({1.0F, 1.0F, 0.0F, 1.0F, 0.0F, 0.0F}).view({2, 3}));
}

TEST(MergeApply, LanesWithoutAGradientCountAsZero) {
  const std::vector<Slice> slices(3, Slice{1});
  const auto apply = [&](const merge::Rule& rule) {
    return merge::apply(rule, kLanes, slices, {at::full({1}, 6.0), {}, at::full({1}, 1.0)}, {1})
        .item<double>();
  };
  EXPECT_NEAR(apply(merge::mean()), 7.0 / 3, 1e-6);
  EXPECT_NEAR(apply(merge::two_smallest_mean()), 0.5, 1e-6);
  Random random(0);
  EXPECT_NEAR(apply(make_rule("median", {}, random)), 1.0, 1e-6);
}

TEST(MergeApply, NoGradientAtAllIsUndefined) {
  const std::vector<Slice> slices(3, Slice{1});
  Random random(0);
  for (const std::string& name : rule_names()) {
    const auto rule = make_rule(name, {"base", "sub1", "sub2"}, random);
    EXPECT_FALSE(merge::apply(rule, kLanes, slices, {{}, {}, {}}, {1}).defined()) << name;
  }
}

TEST(MergeApply, EqualsTheRuleElementByElement) {
  // Random leading slices in up to four dimensions; each element merged on its own, as a scalar,
  // from the lanes that cover it.
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    torch::manual_seed(seed);
    std::vector<int64_t> shape;
    for (int64_t d = random.integer(0, 4); d > 0; --d) shape.push_back(random.integer(1, 4));
    const auto count = static_cast<size_t>(random.integer(1, 4));
    std::vector<int64_t> ranks(count);
    std::iota(ranks.begin(), ranks.end(), int64_t{0});
    random.shuffle(ranks);
    std::vector<std::string> names;
    std::vector<Lane> lanes;
    std::vector<Slice> slices;
    std::vector<at::Tensor> gradients;
    for (size_t lane = 0; lane < count; ++lane) {
      names.push_back("lane" + std::to_string(lane));
      lanes.push_back({names.back(), ranks[lane]});
      Slice slice;
      for (const int64_t extent : shape) slice.push_back(random.integer(1, extent));
      slices.push_back(slice);
      gradients.push_back(random.chance(0.8) ? at::randn(slice, at::kDouble) : at::Tensor());
    }
    if (!gradients[0].defined()) gradients[0] = at::randn(slices[0], at::kDouble);
    for (const std::string& name : linear_rule_names()) {
      const auto rule = make_rule(name, names, random);
      const at::Tensor merged = merge::apply(rule, lanes, slices, gradients, shape);
      at::Tensor expected = at::zeros(shape, at::kDouble);
      for (int64_t flat = 0; flat < expected.numel(); ++flat) {
        std::vector<PlainUse> uses;
        for (size_t lane = 0; lane < count; ++lane) {
          int64_t rest = flat;
          bool covered = true;
          at::Tensor value = gradients[lane];
          std::vector<int64_t> index(shape.size());
          for (size_t d = shape.size(); d-- > 0;) {
            index[d] = rest % shape[d];
            rest /= shape[d];
            covered = covered && index[d] < slices[lane][d];
          }
          if (!covered) continue;
          for (const int64_t i : index) {
            if (value.defined()) value = value[i];
          }
          uses.push_back(
              {names[lane], ranks[lane], 0, value.defined() ? value : at::zeros({}, at::kDouble)});
        }
        if (!uses.empty()) {
          expected.view({-1})[flat].copy_(merge_plainly(rule, uses));
        }
      }
      expect_close(merged, expected, 1e-13, name);
    }
  }
}

TEST(MergeApply, FunctionRulesGetNamesSlicesAndShape) {
  std::vector<merge::LaneGradient> seen;
  const auto rule = merge::function("look", [&](const std::vector<merge::LaneGradient>& all) {
    seen = all;
    return at::zeros(all[0].parameter_shape);
  });
  merge::apply(rule, {{"b", 1}, {"a", 0}}, {{2, 1}, {1, 3}}, {at::ones({2, 1}), {}}, {2, 3});
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_EQ(seen[0].name, "b");
  EXPECT_EQ(seen[0].slice, (Slice{2, 1}));
  EXPECT_EQ(seen[1].slice, (Slice{1, 3}));
  EXPECT_EQ(seen[1].parameter_shape, (Slice{2, 3}));
  expect_same_bits(seen[0].gradient, at::ones({2, 1}));
  expect_same_bits(seen[1].gradient, at::zeros({1, 3}));
}

TEST(MergeErrors, SayWhatIsWrong) {
  expect_throws_with([] { merge::weighted({}); }, {"merge::weighted", "none"});
  expect_throws_with([] { merge::weighted({{"a", 1.0}, {"a", 2.0}}); }, {"'a'", "twice"});
  expect_throws_with([] { merge::weighted({{"base", 1.0}}).coefficients(kLanes); },
                     {"no coefficient", "'sub1'"});
  expect_throws_with([] { merge::function("mine", nullptr); }, {"'mine'", "no function"});
  const auto missing = merge::missing_function("mine");
  expect_throws_with([&] { missing.coefficients(kLanes); }, {"'mine'", "no coefficients"});
  expect_throws_with([&] { merge::apply(missing, {{"a", 0}}, {{1}}, {at::ones({1})}, {1}); },
                     {"'mine'", "file", "rules = {'mine'"});
  const auto returns = [](const at::Tensor& what) {
    return merge::function("mine", [what](const auto& all) {
      static_cast<void>(all);
      return what;
    });
  };
  expect_throws_with([&] { merge::apply(returns({}), {{"a", 0}}, {{1}}, {at::ones({1})}, {1}); },
                     {"'mine'", "returned no tensor"});
  expect_throws_with(
      [&] { merge::apply(returns(at::ones({7})), {{"a", 0}}, {{1}}, {at::ones({1})}, {1}); },
      {"'mine'", "[7]", "[1]"});
}

}  // namespace
}  // namespace nsn::test
