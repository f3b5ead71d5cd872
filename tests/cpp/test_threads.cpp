#include <ATen/ops/allclose.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <c10/util/irange.h>
#include <gtest/gtest.h>
#include <nsn/blocks/attention.h>
#include <nsn/blocks/batch_norm.h>
#include <nsn/blocks/dense.h>
#include <nsn/blocks/embedding.h>
#include <nsn/blocks/norm.h>
#include <nsn/inference/pack.h>
#include <nsn/network/network.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "inference/latest.h"

// Threads that switch among views of one network. `make tsan` runs this file under ThreadSanitizer,
// so that it stands by itself.

namespace nsn::test {
namespace {

constexpr size_t kThreads = 8, kCalls = 200;

/// Widths, dropped blocks and dropout.
NetworkOptions perceptron() {
  const auto hidden = DenseOptions(24, 24).activation(torch::kReLU).dropout(0.5);
  return NetworkOptions()
      .input({24})
      .block("hidden1", hidden)
      .block("hidden2", hidden)
      .block("hidden3", DenseOptions(24, 24).activation(kSwiGLU))
      .block("output", DenseOptions(24, 5).per_subnetwork({"bias"}))
      .subnetwork("half", SubnetworkOptions({"hidden1", "hidden2", "hidden3", "output"})
                              .width("hidden1", 0.5)
                              .width("hidden2", 0.5)
                              .width("hidden3", 0.5))
      .subnetwork("thin", SubnetworkOptions({"hidden1", "output"}).width("hidden1", 0.25))
      .subnetwork("short", {{"hidden2", "output"}})
      .subnetwork("least", {{"output"}});
}

/// Attention, batch norm with statistics of each sub-network's own, a tied output.
NetworkOptions language() {
  return NetworkOptions()
      .input({6}, at::kLong)
      .block("tokens", EmbeddingOptions(11, 16))
      .block("positions", PositionEmbeddingOptions(6, 16))
      .block("first", TransformerOptions(16, 4, 32).causal(true).dropout(0.1))
      .block("norm", BatchNormOptions(6).per_subnetwork({"statistics"}))
      .block("second", TransformerOptions(16, 4, 32).norm("rms").activation(kGeGLU))
      .block("output", TiedOutputOptions("tokens", 11, 16).bias(true))
      .subnetwork("narrow", SubnetworkOptions({"tokens", "positions", "first", "norm", "output"})
                                .width("first", "heads", 0.5)
                                .width("first", "ffn", 0.25))
      .subnetwork("least", SubnetworkOptions({"tokens", "positions", "output"}).width("tokens", 8));
}

/// In training mode, which views do not mind, with running statistics made.
Network trained(const NetworkOptions& options, const at::Tensor& batch) {
  Network net(options);
  const at::NoGradGuard no_grad;
  net->joint(batch);
  return net;
}

/// Each thread switches at random among all sub-networks, and compares what comes out with what
/// came out before there were threads, bit by bit.
void switch_in_threads(const Network& net, const std::vector<at::Tensor>& inputs) {
  const auto names = net->description().names();
  std::vector<View> views;
  std::vector<std::vector<at::Tensor>> expected;
  for (const std::string& name : names) {
    views.push_back(net->view(name));
    auto& outputs = expected.emplace_back();
    for (const at::Tensor& x : inputs) outputs.push_back(views.back()(x));
  }
  std::atomic<size_t> ready{0}, right{0}, stale{0};
  std::vector<std::thread> threads;
  for (const size_t thread : c10::irange(kThreads)) {
    threads.emplace_back([&, thread] {
      std::mt19937 choices(static_cast<unsigned>(thread));
      ++ready;
      while (ready < kThreads) std::this_thread::yield();
      View current = views[thread % views.size()];
      for (size_t call = 0; call < kCalls; ++call) {
        const size_t next = choices() % views.size(), input = choices() % inputs.size();
        // Now and then a view of its own.
        current = choices() % 8 == 0 ? net->view(names[next]) : views[next];
        right += at::Tensor(current(inputs[input])).equal(expected[next][input]) ? 1 : 0;
        stale += current.stale() ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, kThreads * kCalls);
  EXPECT_EQ(stale, 0U);
}

/// The same with packed views, of a pack that is made anew meanwhile.
void switch_packed_in_threads(const Network& net, const std::vector<at::Tensor>& inputs) {
  Pack pack(net);
  std::vector<PackedView> views;
  std::vector<std::vector<at::Tensor>> expected;
  for (const std::string& name : net->description().names()) {
    views.push_back(pack.view(name));
    auto& outputs = expected.emplace_back();
    for (const at::Tensor& x : inputs) outputs.push_back(views.back()(x));
  }
  std::atomic<size_t> right{0};
  std::vector<std::thread> threads;
  for (const size_t thread : c10::irange(kThreads)) {
    threads.emplace_back([&, thread] {
      std::mt19937 choices(static_cast<unsigned>(thread));
      PackedView current = views[0];
      for (size_t call = 0; call < kCalls; ++call) {
        const size_t next = choices() % views.size(), input = choices() % inputs.size();
        current = views[next];
        right += at::Tensor(current(inputs[input])).equal(expected[next][input]) ? 1 : 0;
      }
    });
  }
  for (int times = 0; times < 5; ++times) pack.refresh();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, kThreads * kCalls);
}

/// A value that knows how many of it there are.
struct Counted {
  static std::atomic<int64_t> there;
  explicit Counted(int64_t number) : number(number), again(number) { ++there; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  ~Counted() {
    number = -1;
    --there;
  }
  int64_t number, again;
};
std::atomic<int64_t> Counted::there{0};

/// Threads that use the latest of values that are replaced see whole ones, no older than the one
/// before; a value goes with its last use.
TEST(Threads, UseTheLatestOfValues) {
  {
    detail::Latest<Counted> latest;
    latest.replace(std::make_unique<Counted>(0));
    const auto first = latest.now();
    std::atomic<bool> ends{false};
    std::atomic<size_t> wrong{0};
    std::vector<std::thread> threads;
    for (size_t thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&] {
        int64_t seen = 0;
        while (!ends) {
          const auto own = latest.now();
          if (own->number < seen || own->number != own->again) ++wrong;
          seen = own->number;
        }
      });
    }
    for (int64_t i = 1; i <= 200; ++i) latest.replace(std::make_unique<Counted>(i));
    ends = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0U);
    EXPECT_EQ(first->number, 0);
    EXPECT_EQ(latest.now()->number, 200);
    EXPECT_EQ(Counted::there, 2);
  }
  EXPECT_EQ(Counted::there, 0);
}

/// More cells of a grid than stay in memory: while one thread runs a cell, others make and forget
/// it.
TEST(Threads, MakeCellsOfAGrid) {
  auto options = NetworkOptions().input({4});
  for (const char* name : {"a", "b", "c"}) {
    options.block(name, DenseOptions(4, 4).activation(torch::kReLU));
    options.axis(std::string("w") + name, Widths{{1, 2, 3, 4}, {name}});
  }
  options.block("last", DenseOptions(4, 4))
      .block("output", DenseOptions(4, 2))
      .axis("wlast", Widths{{1, 2, 3, 4}, {"last"}});
  const Network net(options);
  const at::Tensor x = at::rand({3, 4});
  const Grid grid = net->description().grid();
  ASSERT_EQ(grid.size(), 256U);
  std::vector<at::Tensor> expected;
  for (const size_t cell : c10::irange(grid.size())) {
    expected.push_back(net->view(grid.name(cell))(x));
  }
  std::atomic<size_t> right{0};
  std::vector<std::thread> threads;
  for (const size_t thread : c10::irange(kThreads)) {
    threads.emplace_back([&, thread] {
      std::mt19937 choices(static_cast<unsigned>(thread));
      for (size_t call = 0; call < kCalls; ++call) {
        const size_t cell = choices() % grid.size();
        right += net->view(grid.name(cell))(x).equal(expected[cell]) ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, kThreads * kCalls);
}

/// Each thread trains a network of its own: what the passes keep from one to the next is a
/// thread's.
TEST(Threads, TrainNetworksOfTheirOwn) {
  std::vector<Network> networks;
  for (int thread = 0; thread < 4; ++thread) networks.emplace_back(perceptron());
  const at::Tensor x = at::rand({8, 24});
  std::atomic<size_t> right{0};
  std::vector<std::thread> threads;
  for (Network& net : networks) {
    threads.emplace_back([&right, &net, &x] {
      for (int step = 0; step < 10; ++step) {
        net->zero_grad();
        at::Tensor loss;
        for (const auto& output : net->joint(x)) {
          const at::Tensor term = output.value().pow(2).mean();
          loss = loss.defined() ? loss + term : term;
        }
        loss.backward();
        const at::NoGradGuard no_grad;
        for (at::Tensor& parameter : net->parameters()) parameter.sub_(parameter.grad(), 0.1);
      }
      const PackedView view = Pack(net).view("half");
      right += at::allclose(view(x), net->view("half")(x), 1e-4, 1e-5) ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 4U);
}

TEST(Threads, SwitchAmongWidths) {
  const Network net = trained(perceptron(), at::rand({4, 24}));
  const std::vector<at::Tensor> inputs{at::rand({1, 24}), at::rand({3, 24}), at::rand({8, 24})};
  switch_in_threads(net, inputs);
  switch_packed_in_threads(net, inputs);
}

TEST(Threads, SwitchAmongAttentionNormsAndTiedWeights) {
  const auto tokens = [](int64_t batch) { return at::randint(0, 11, {batch, 6}, at::kLong); };
  const Network net = trained(language(), tokens(4));
  const std::vector<at::Tensor> inputs{tokens(1), tokens(3), tokens(8)};
  switch_in_threads(net, inputs);
  switch_packed_in_threads(net, inputs);
}

}  // namespace
}  // namespace nsn::test
