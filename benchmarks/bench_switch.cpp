// What a sub-network costs to run and to switch to, at batch 1, for the network of the paper; and
// one training step of all three. Thread count by OMP_NUM_THREADS.

#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <benchmark/benchmark.h>
#include <nsn/nsn.h>
#include <torch/optim/sgd.h>

#include <array>

namespace {

nsn::Network paper_network() {
  const auto hidden = nsn::DenseOptions(784, 784).activation(torch::kReLU);
  return nsn::Network(
      nsn::NetworkOptions()
          .input({784})
          .block("hidden1", nsn::DenseOptions(hidden).dropout(0.2))
          .block("hidden2", nsn::DenseOptions(hidden).dropout(0.5))
          .block("output", nsn::DenseOptions(784, 10))
          .subnetwork("sub1", nsn::SubnetworkOptions({"hidden2", "output"}).dropout("hidden2", 0.2))
          .subnetwork("sub2", nsn::SubnetworkOptions({"output"}))
          .merge(nsn::merge::two_smallest_mean()));
}

constexpr std::array<const char*, 3> kNames = {"base", "sub1", "sub2"};

/// Choosing another view: what an application does between two frames.
void choose_view(benchmark::State& state) {
  const nsn::Network net = paper_network();
  const std::array<nsn::View, 3> views = {net->view("base"), net->view("sub1"), net->view("sub2")};
  size_t next = 0;
  for (auto _ : state) {
    const nsn::View* chosen = &views[next];
    benchmark::DoNotOptimize(chosen);
    next = next == 2 ? 0 : next + 1;
  }
}
BENCHMARK(choose_view);

void forward_batch_1(benchmark::State& state) {
  const nsn::Network net = paper_network();
  const nsn::View view = net->view(kNames[static_cast<size_t>(state.range(0))]);
  const at::Tensor x = at::rand({1, 784});
  for (auto _ : state) benchmark::DoNotOptimize(view(x));
  state.SetLabel(view.name());
}
BENCHMARK(forward_batch_1)->DenseRange(0, 2)->Unit(benchmark::kMicrosecond);

void training_step_batch_128(benchmark::State& state) {
  nsn::Network net = paper_network();
  const auto options = torch::optim::SGDOptions(0.03).momentum(0.9);
  torch::optim::SGD optimizer(nsn::param_groups(net, options, 9e-5, "base"), options);
  const at::Tensor x = at::rand({128, 784});
  const at::Tensor labels = at::randint(10, {128}, at::kLong);
  for (auto _ : state) {
    optimizer.zero_grad();
    nsn::joint_loss(net->joint(x), labels).backward();
    optimizer.step();
  }
}
BENCHMARK(training_step_batch_128)->Unit(benchmark::kMillisecond);

}  // namespace
