#include <nsn/description/grid.h>
#include <nsn/network/schedule.h>
#include <nsn/network/teach.h>

#include <set>

#include "support.h"

namespace nsn::test {
namespace {

NetworkOptions with_grid() {
  return NetworkOptions()
      .input({6}, at::kDouble)
      .block("hidden1", DenseOptions(6, 8).activation(torch::kReLU))
      .block("hidden2", DenseOptions(8, 8).activation(torch::kReLU))
      .block("output", DenseOptions(8, 3))
      .axis("w", Widths{{0.25, 0.5, 1.0}, {"hidden1"}})
      .axis("d", Depths{{"hidden2"}})
      .merge(merge::mean());
}

TEST(Grid, NamesAndCells) {
  const Description description(with_grid());
  const Grid& grid = description.grid();
  EXPECT_EQ(grid.size(), 6U);
  EXPECT_EQ(description.places(), 7U);
  for (size_t cell = 0; cell < grid.size(); ++cell) {
    EXPECT_EQ(grid.cell(grid.choices(cell)), cell);
    EXPECT_EQ(grid.find(grid.name(cell)), cell);
    EXPECT_EQ(description.index_of(grid.name(cell)), cell + 1);
  }
  EXPECT_EQ(grid.name(0), "w0_d0");
  EXPECT_EQ(grid.name(5), "w2_d1");
  for (const char* name : {"", "w", "w0", "w0_", "w0_d", "w0_d2", "w3_d0", "w00_d0", "w0_d0 ",
                           "w0_d00", "w99999999999999999999_d0", "d0_w0"}) {
    EXPECT_EQ(grid.find(name), std::nullopt) << name;
  }
  expect_throws_with([&] { grid.cell({3, 0}); }, {"axis 'w' has the choices 0 to 2, but got 3"});
  expect_throws_with([&] { grid.cell({0}); }, {"expected 2 choices"});
  expect_throws_with([&] { grid.choices(6); }, {"there is no cell 6"});
  expect_throws_with([&] { description.subnetwork(size_t{7}); }, {"there is no sub-network 7"});
  const Description again = Description::from_json(description.to_json());
  EXPECT_EQ(again, description);
  EXPECT_EQ(again.subnetwork("w0_d1")->parameter_count,
            description.subnetwork("w0_d1")->parameter_count);
}

/// One sub-network at a time, by hand: the mean over those that cover an element.
TEST(Grid, TrainsCells) {
  torch::manual_seed(1);
  Network net(with_grid());
  const at::Tensor x = torch::randn({5, 6}, at::kDouble);
  const std::vector<std::string> names{"w0_d0", "w1_d1", "w2_d1"};
  std::vector<at::Tensor> sum, count;
  for (const at::Tensor& parameter : net->parameters()) {
    sum.push_back(at::zeros_like(parameter));
    count.push_back(at::zeros_like(parameter));
  }
  const auto whole = net->named_parameters();
  for (const std::string& name : names) {
    const int64_t width = name == "w0_d0" ? 2 : name == "w1_d1" ? 4 : 8;
    const auto at = [&](const char* key) { return *whole.find(key); };
    at::Tensor y = at::relu(at::linear(x, at("hidden1.weight").slice(0, 0, width),
                                       at("hidden1.bias").slice(0, 0, width)));
    const bool is_deep = name != "w0_d0";
    if (is_deep) {
      y = at::relu(at::linear(y, at("hidden2.weight").slice(1, 0, width), at("hidden2.bias")));
    }
    const int64_t read = is_deep ? 8 : width;
    y = at::linear(y, at("output.weight").slice(1, 0, read), at("output.bias"));
    expect_close(net->joint(x, {name})[name], y, 1e-12, name);
    const auto gradients =
        torch::autograd::grad({y.square().mean()}, net->parameters(), {}, false, false, true);
    for (size_t i = 0; i < sum.size(); ++i) {
      if (!gradients[i].defined()) continue;
      sum[i] += gradients[i];
      at::Tensor covered = at::zeros_like(count[i]);
      const std::string key = whole[i].key();
      if (key.starts_with("hidden1")) covered.slice(0, 0, width).fill_(1);
      if (key == "hidden2.weight") covered.slice(1, 0, width).fill_(1);
      if (key == "output.weight") covered.slice(1, 0, read).fill_(1);
      if (key == "hidden2.bias" || key == "output.bias") covered.fill_(1);
      count[i] += covered;
    }
  }
  at::Tensor total = at::zeros({}, at::kDouble);
  for (const auto& output : net->joint(x, names)) total = total + output.value().square().mean();
  total.backward();
  for (size_t i = 0; i < sum.size(); ++i) {
    expect_close(net->parameters()[i].grad(), sum[i] / count[i].clamp_min(1), 1e-10,
                 whole[i].key());
  }
}

/// What a graph holds of a cell is its own: others may take the cell's place before its backward.
TEST(Grid, BackwardComesAfterItsCellIsForgotten) {
  torch::manual_seed(3);
  auto options =
      NetworkOptions()
          .input({2, 6, 6}, at::kDouble)
          .block("conv", Conv2dOptions(2, 8, 3).padding(1).activation(torch::kReLU))
          .block("norm", BatchNormOptions(8))
          .block("flat", FlattenOptions())
          .block("hidden", DenseOptions(8 * 36, 8).activation(torch::kReLU).dropout(0.5))
          .block("deep", ResidualOptions().block("inner", DenseOptions(8, 8).activation(kGeGLU)))
          .block("output", DenseOptions(8, 3))
          .axis("c", Widths{{1, 2, 3, 4, 5, 6, 7, 8}, {"conv"}})
          .axis("h", Widths{{1, 2, 3, 4, 5, 6, 7, 8}, {"hidden"}})
          .axis("d", Depths{{"deep", "norm"}})
          .merge(merge::mean());
  const at::Tensor x = torch::randn({3, 2, 6, 6}, at::kDouble);
  std::vector<std::vector<at::Tensor>> gradients;
  for (const bool forgets : {false, true}) {
    torch::manual_seed(4);
    Network net(options);
    at::Tensor total = at::zeros({}, at::kDouble);
    for (const auto& output : net->joint(x, {"c1_h2_d2", "c3_h3_d1", "base"})) {
      total = total + output.value().square().mean();
    }
    if (forgets) {
      for (size_t cell = 0; cell < net->description().grid().size(); ++cell) {
        net->view(net->description().grid().name(cell))(x);
      }
    }
    total.backward();
    auto& own = gradients.emplace_back();
    for (const at::Tensor& parameter : net->parameters()) own.push_back(parameter.grad());
  }
  for (size_t i = 0; i < gradients[0].size(); ++i) {
    EXPECT_TRUE(gradients[0][i].equal(gradients[1][i]));
  }
}

TEST(Grid, SandwichDrawsFromIt) {
  const Description description(with_grid());
  const auto schedule = schedule::sandwich(description, 2, 7);
  std::set<std::string> seen;
  for (int64_t step = 0; step < 100; ++step) {
    const auto turn = schedule.at(step, 0);
    ASSERT_EQ(turn.names.size(), 4U);
    EXPECT_EQ(turn.names[0], "base");
    EXPECT_EQ(turn.names[1], "w0_d0");
    seen.insert(turn.names.begin(), turn.names.end());
  }
  EXPECT_EQ(seen.size(), 6U);  // base, and all cells but the one that is the same
  EXPECT_EQ(seen.count("w2_d1"), 0U);
  expect_throws_with([&] { schedule::sandwich(description, 5, 7); }, {"but only 4 fit and differ"});
  expect_throws_with([&] { schedule::from_epoch(description, {{"w0_d0", 2}}); }, {"lists no"});
}

}  // namespace
}  // namespace nsn::test
