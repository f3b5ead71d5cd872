// What it costs to switch from one sub-network of the paper's network to another, and to run it
// then: time, and allocations. Prints JSON; switch.py runs it, and says what the figures mean.

#include <ATen/ops/rand.h>
#include <nsn/nsn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "allocations.h"

namespace {

using Clock = std::chrono::steady_clock;

nsn::Network paper_network() {
  const auto hidden = nsn::DenseOptions(784, 784).activation(torch::kReLU);
  return nsn::Network(nsn::NetworkOptions()
                          .input({784})
                          .block("hidden1", hidden)
                          .block("hidden2", hidden)
                          .block("output", nsn::DenseOptions(784, 10))
                          .subnetwork("sub1", {{"hidden2", "output"}})
                          .subnetwork("sub2", {{"output"}}));
}

double nanoseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::nano>(duration).count();
}

struct Spread {
  double median, p999;
};

Spread spread(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 2], values[values.size() * 999 / 1000]};
}

/// Keeps the compiler from foreseeing or dropping what was written.
void touch(const void* value) { asm volatile("" : : "r"(value) : "memory"); }

}  // namespace

int main() {
  // One choice is shorter than a look at the clock, so that so many are timed together.
  constexpr size_t kBatch = 16, kBatches = 200000, kForwards = 20000, kWarm = 1000;
  const nsn::Network net = paper_network();
  const std::vector<nsn::View> views = {net->view("base"), net->view("sub1"), net->view("sub2")};
  const at::Tensor x = at::rand({1, 784});

  // Which view comes next is known at run time alone, as in an application.
  std::mt19937 engine(std::random_device{}());
  std::vector<uint8_t> choices(4096);
  for (uint8_t& choice : choices) choice = static_cast<uint8_t>(engine() % views.size());

  std::thread([] {}).join();  // a process with threads counts references by atomic operations
  nsn::View current = views[0];
  std::vector<double> times;
  times.reserve(kBatches);
  const int64_t before = allocations;
  for (size_t batch = 0; batch < kBatches; ++batch) {
    const uint8_t* next = &choices[batch * kBatch % choices.size()];
    const auto start = Clock::now();
    for (size_t i = 0; i < kBatch; ++i) {
      current = views[next[i]];
      touch(&current);
    }
    times.push_back(nanoseconds(Clock::now() - start) / kBatch);
  }
  const int64_t choosing = allocations - before;
  const Spread choice = spread(std::move(times));

  std::string forwards, counts;
  for (size_t place = 0; place < views.size(); ++place) {
    std::vector<double> own;
    own.reserve(kForwards);
    int64_t count = 0;
    for (size_t call = 0; call < kForwards + kWarm; ++call) {
      // Another one has just run.
      current =
          views[(place + 1 + choices[call % choices.size()] % (views.size() - 1)) % views.size()];
      at::Tensor y = current(x);
      touch(&y);
      const int64_t allocated = allocations;
      const auto start = Clock::now();
      current = views[place];
      y = current(x);
      touch(&y);
      const double time = nanoseconds(Clock::now() - start) / 1e3;
      if (call < kWarm) continue;
      count = allocations - allocated;
      own.push_back(time);
    }
    const Spread each = spread(std::move(own));
    std::array<char, 160> text{};
    const char* comma = place == 0 ? "" : ", ";
    std::snprintf(text.data(), text.size(), "%s\"%s\": {\"median\": %.2f, \"p999\": %.2f}", comma,
                  views[place].name().c_str(), each.median, each.p999);
    forwards += text.data();
    std::snprintf(text.data(), text.size(), "%s\"%s\": %lld", comma, views[place].name().c_str(),
                  static_cast<long long>(count));
    counts += text.data();
  }
  std::printf(
      "{\"switch_ns\": {\"median\": %.2f, \"p999\": %.2f}, \"choices_timed_together\": %zu, "
      "\"choices\": %zu, \"allocations\": %lld, \"switch_and_forward_us\": {%s}, "
      "\"forwards\": %zu, \"forward_allocations\": {%s}}\n",
      choice.median, choice.p999, kBatch, kBatch * kBatches, static_cast<long long>(choosing),
      forwards.c_str(), kForwards, counts.c_str());
  return 0;
}
