// What a call of a packed view allocates beyond its output; prints JSON.
// tests/python/test_step_cost.py expects nothing.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <nsn/nsn.h>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "allocations.h"

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

template <typename Call>
int64_t allocations_of(const Call& call) {
  for (int i = 0; i < 3; ++i) call();  // what lasts from call to call
  const int64_t before = allocations;
  call();
  return allocations - before;
}

}  // namespace

int main() {
  at::set_num_threads(1);
  std::vector<std::pair<std::string, nsn::Network>> networks{
      {"mlp", mlp()}, {"cnn", cnn()}, {"transformer", transformer()}};
  const char* separator = "{";
  for (auto& [name, net] : networks) {
    net->joint(at::randn([&] {
      auto shape = net->description().input();
      shape.insert(shape.begin(), 4);
      return shape;
    }()));  // batch norms' statistics
    const nsn::PackedView view = nsn::Pack(net).view("base");
    for (const int64_t batch : {1, 70}) {
      auto shape = net->description().input();
      shape.insert(shape.begin(), batch);
      const at::Tensor x = at::randn(shape);
      const auto sizes = view(x).sizes().vec();
      const int64_t output = allocations_of([&] { return at::empty(sizes); });
      const int64_t own = allocations_of([&] { return view(x); }) - output;
      at::Tensor out = at::empty(sizes);
      const int64_t into = allocations_of([&] { view(x, out); });
      std::printf("%s\"%s/%lld/out\": %lld", separator, name.c_str(), static_cast<long long>(batch),
                  static_cast<long long>(into));
      separator = ", ";
      std::printf("%s\"%s/%lld\": %lld", separator, name.c_str(), static_cast<long long>(batch),
                  static_cast<long long>(own));
      separator = ", ";
    }
  }
  std::printf("}\n");
  return 0;
}
