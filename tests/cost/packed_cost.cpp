// What a call of a packed view allocates beyond its output, and what one into memory of the
// caller's allocates, locks and has the system bring; prints JSON. tests/python/test_step_cost.py
// expects nothing.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <dlfcn.h>
#include <nsn/nsn.h>
#include <pthread.h>
#include <sys/resource.h>

#include <atomic>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "allocations.h"

namespace {
std::atomic<int64_t> locks{0};
}  // namespace

// Each std::mutex of the process is locked by it.
extern "C" __attribute__((visibility("default"))) int pthread_mutex_lock(pthread_mutex_t* mutex) {
  using Lock = int (*)(pthread_mutex_t*);
  static const auto real = reinterpret_cast<Lock>(::dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  locks.fetch_add(1, std::memory_order_relaxed);
  return real(mutex);
}

namespace {

nsn::Network mlp() {
  return nsn::Network(nsn::NetworkOptions()
                          .input({40})
                          .block("hidden", nsn::DenseOptions(40, 40).activation(torch::kGELU))
                          .block("output", nsn::DenseOptions(40, 10))
                          .subnetwork("small", {{"output"}}));
}

nsn::Network cnn() {
  return nsn::Network(
      nsn::NetworkOptions()
          .input({3, 12, 12})
          .block("stem", nsn::Conv2dOptions(3, 16, 3).padding(1).activation(torch::kReLU))
          .block("norm", nsn::BatchNormOptions(16))
          .block("groups", nsn::Conv2dOptions(16, 16, 3).groups(16))
          .block("pool", nsn::MaxPool2dOptions(2))
          .block("mean", nsn::GlobalAvgPoolOptions())
          .block("output", nsn::DenseOptions(16, 10)));
}

nsn::Network transformer() {
  return nsn::Network(nsn::NetworkOptions()
                          .input({12, 32})
                          .block("block", nsn::TransformerOptions(32, 4, 64).causal(true))
                          .block("norm", nsn::LayerNormOptions(32))
                          .block("output", nsn::DenseOptions(32, 10)));
}

/// Whose arena is of more than 8 MB.
nsn::Network large() {
  return nsn::Network(
      nsn::NetworkOptions()
          .input({3, 160, 160})
          .block("stem", nsn::Conv2dOptions(3, 48, 3).padding(1).activation(torch::kGELU))
          .block("norm", nsn::BatchNormOptions(48))
          .block("deep", nsn::Conv2dOptions(48, 48, 3).padding(1).activation(torch::kReLU))
          .block("mean", nsn::GlobalAvgPoolOptions())
          .block("output", nsn::DenseOptions(48, 10)));
}

/// What a call cost, once others have been.
struct Cost {
  int64_t allocations, locks, page_faults;
};

template <typename Call>
Cost cost_of(const Call& call) {
  const auto now = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return Cost{allocations, locks, usage.ru_minflt + usage.ru_majflt};
  };
  for (int i = 0; i < 3; ++i) call();  // what lasts from call to call
  const Cost before = now();
  call();
  const Cost after = now();
  return {after.allocations - before.allocations, after.locks - before.locks,
          after.page_faults - before.page_faults};
}

}  // namespace

int main() {
  std::vector<std::pair<std::string, nsn::Network>> networks{
      {"mlp", mlp()}, {"cnn", cnn()}, {"transformer", transformer()}, {"large", large()}};
  const char* separator = "{";
  for (auto& [name, net] : networks) {
    const auto batch_of = [&](int64_t samples) {
      auto shape = net->description().input();
      shape.insert(shape.begin(), samples);
      return at::randn(shape);
    };
    net->joint(batch_of(4));  // batch norms' statistics
    const nsn::PackedView view = nsn::Pack(net).view("base");
    for (const int threads : {1, 2}) {
      at::set_num_threads(threads);
      for (const int64_t samples : {1, name == "large" ? 2 : 70}) {
        const at::Tensor x = batch_of(samples);
        const auto sizes = view(x).sizes().vec();
        const int64_t output = cost_of([&] { return at::empty(sizes); }).allocations;
        const int64_t own = cost_of([&] { return view(x); }).allocations - output;
        at::Tensor out = at::empty(sizes);
        const Cost into = cost_of([&] { view(x, out); });
        std::printf(
            "%s\"%s, %d threads, %d samples\": {\"allocations beside the output\": %d, "
            "\"with out\": {\"allocations\": %d, \"locks\": %d, \"page faults\": %d}}",
            separator, name.c_str(), threads, static_cast<int>(samples), static_cast<int>(own),
            static_cast<int>(into.allocations), static_cast<int>(into.locks),
            static_cast<int>(into.page_faults));
        separator = ",\n";
      }
    }
  }
  std::printf("}\n");
  return 0;
}
