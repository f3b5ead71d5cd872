// What one training step of the paper's network costs in calls and allocations; prints JSON. Under
// callgrind, `measured_step` is the function to collect in. tests/python/test_step_cost.py compares
// with the committed counts.

#include <ATen/Parallel.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <nsn/nsn.h>

#include <algorithm>
#include <cstdio>
#include <memory>

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

struct Training {
  nsn::Network net = paper_network();
  torch::optim::SGDOptions options = torch::optim::SGDOptions(0.003).momentum(0.9);
  nsn::FusedSGD optimizer{nsn::param_groups(net, options, 9e-5, "base"), options};
  at::Tensor images = at::rand({128, 784});
  at::Tensor labels = at::randint(10, {128}, at::kLong);
};

/// Counts blocks that the CPU allocator hands out, and the most bytes at once.
struct Memory : c10::MemoryReportingInfoBase {
  void reportMemoryUsage(void* /*ptr*/, int64_t size, size_t /*total_allocated*/,
                         size_t /*total_reserved*/, c10::Device /*device*/) override {
    now += size;
    peak = std::max(peak, now);
    if (size > 0) ++allocations;
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t now = 0, peak = 0, allocations = 0;
};

int64_t aten_calls = 0;

std::unique_ptr<at::ObserverContext> count_call(const at::RecordFunction& /*function*/) {
  ++aten_calls;
  return nullptr;
}

}  // namespace

extern "C" __attribute__((noinline, visibility("default"))) void measured_step(Training& training) {
  const auto loss = nsn::joint_loss(training.net->joint(training.images), training.labels);
  training.optimizer.zero_grad();
  loss.backward();
  training.optimizer.step();
}

int main(int argc, char** /*argv*/) {
  at::set_num_threads(1);
  Training training;
  if (argc > 1) {  // for callgrind: the steps that settle are not measured_step
    for (int i = 0; i < 2; ++i) {
      nsn::joint_loss(training.net->joint(training.images), training.labels).backward();
      training.optimizer.step();
      training.optimizer.zero_grad();
    }
    measured_step(training);
    return 0;
  }
  for (int i = 0; i < 3; ++i) measured_step(training);
  const auto memory = std::make_shared<Memory>();
  {
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, memory);
    measured_step(training);
    training.optimizer.zero_grad();
    *memory = Memory();
    measured_step(training);
  }
  const auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(&count_call).scopes({at::RecordScope::FUNCTION}));
  measured_step(training);
  at::removeCallback(handle);
  std::printf("{\"aten_calls\": %lld, \"allocations\": %lld, \"peak_bytes\": %lld}\n",
              static_cast<long long>(aten_calls), static_cast<long long>(memory->allocations),
              static_cast<long long>(memory->peak));
  return 0;
}
