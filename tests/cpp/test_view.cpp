#include <malloc.h>

#include <optional>

#include "support.h"

namespace nsn::test {
namespace {

Network network(double dropout = 0.5, at::ScalarType dtype = at::kFloat) {
  torch::manual_seed(21);
  return Network(small_options(merge::mean(), dropout, dtype));
}

TEST(View, SharesTheNetworksStorage) {
  Network net = network();
  const View view = net->view("sub1");
  EXPECT_EQ(view.name(), "sub1");
  const auto held = view.parameters();
  const auto named = net->named_parameters();
  ASSERT_EQ(held.size(), 4U);
  size_t next = 0;
  for (const std::string name :
       {"hidden2.weight", "hidden2.bias", "output.weight", "output.bias"}) {
    EXPECT_EQ(held[next].data_ptr(), named[name].data_ptr()) << name;
    EXPECT_EQ(held[next++].sizes(), named[name].sizes()) << name;
  }
}

TEST(View, EvaluatesAndRecordsNothing) {
  Network net = network();
  const at::Tensor x = at::randn({3, 5}).set_requires_grad(true);
  net->eval();
  std::vector<at::Tensor> expected;
  for (const std::string name : {"base", "sub1", "sub2"}) {
    expected.push_back(net->forward(x, name).detach());
  }
  for (const bool training : {true, false}) {
    net->train(training);
    const auto state = at::detail::getDefaultCPUGenerator().get_state();
    size_t next = 0;
    for (const std::string name : {"base", "sub1", "sub2"}) {
      const torch::AutoGradMode grad_mode(true);
      const at::Tensor y = net->view(name)(x);
      EXPECT_FALSE(y.requires_grad());
      EXPECT_EQ(y.grad_fn(), nullptr);
      expect_same_bits(y, expected[next++], name);
      EXPECT_TRUE(at::GradMode::is_enabled());
    }
    EXPECT_TRUE(at::detail::getDefaultCPUGenerator().get_state().equal(state));
    EXPECT_EQ(net->is_training(), training);
    for (const at::Tensor& parameter : net->parameters()) {
      EXPECT_TRUE(parameter.requires_grad());
      EXPECT_FALSE(parameter.grad().defined());
    }
  }
}

TEST(View, SeesUpdatesInPlace) {
  Network net = network();
  net->eval();
  const View view = net->view("base");
  const at::Tensor x = at::randn({3, 5});
  const at::Tensor before = view(x);
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1));
  joint_loss(net->joint(x), at::zeros({3}, at::kLong)).backward();
  optimizer.step();
  const at::Tensor after = view(x);
  EXPECT_FALSE(after.equal(before));
  expect_same_bits(after, net->forward(x).detach());
  EXPECT_FALSE(view.stale());
}

TEST(View, IsStaleOnceTheNetworkMoved) {
  Network net = network();
  const View base = net->view("base"), sub2 = net->view("sub2");
  const at::Tensor x = at::randn({3, 5});
  const at::Tensor before = base(x);
  EXPECT_FALSE(base.stale());
  net->to(at::kDouble);
  EXPECT_TRUE(base.stale());
  EXPECT_TRUE(sub2.stale());
  expect_same_bits(base(x), before, "the old storages");
  EXPECT_FALSE(net->view("base").stale());
  EXPECT_FALSE(net->view("base").stale(net->parameter_table()));
  EXPECT_TRUE(base.stale(net->parameter_table()));
}

TEST(View, IsStaleByItsOwnParametersOnly) {
  Network net = network();
  const View base = net->view("base"), sub2 = net->view("sub2");
  auto hidden = net->named_parameters()["hidden1.weight"];
  hidden.set_data(hidden.detach().clone());
  EXPECT_TRUE(base.stale());
  EXPECT_FALSE(sub2.stale());
}

TEST(View, OutlivesItsNetwork) {
  std::optional<View> view;
  const at::Tensor x = at::randn({3, 5});
  at::Tensor expected;
  {
    Network net = network();
    view.emplace(net->view("sub1"));
    net->eval();
    expected = net->forward(x, "sub1").detach();
  }
  expect_same_bits((*view)(x), expected);
  EXPECT_FALSE(view->stale());
}

TEST(View, WorksForANetworkOnTheStack) {
  NetworkImpl net(small_options());
  const View view = net.view("base");
  net.eval();
  const at::Tensor x = at::randn({3, 5}, at::kDouble);
  expect_same_bits(view(x), net.forward(x).detach());
  EXPECT_FALSE(view.stale());
}

TEST(View, CopiesAreCheap) {
  Network net = network();
  const View view = net->view("sub1");
  const View copy = view;  // NOLINT(performance-unnecessary-copy-initialization)
  EXPECT_EQ(copy.parameters()[0].data_ptr(), view.parameters()[0].data_ptr());
  EXPECT_EQ(copy.name(), "sub1");
}

TEST(View, ChecksItsInputAndName) {
  Network net = network();
  expect_throws_with([&] { net->view("nobody"); }, {"'nobody'", "'base', 'sub1', 'sub2'"});
  const View view = net->view("sub1");
  expect_throws_with([&] { view(at::randn({3, 6})); }, {"(B, 5)", "(3, 6)"});
}

TEST(View, ChoosingAllocatesNothing) {
  Network net = network();
  const std::vector<View> views = {net->view("base"), net->view("sub1")};
  View current = views[0];
  const size_t before = mallinfo2().uordblks;
  for (const View& view : views) {
    const View held = view;  // NOLINT(performance-unnecessary-copy-initialization)
    current = held;
    EXPECT_EQ(mallinfo2().uordblks, before);
  }
}

}  // namespace
}  // namespace nsn::test
