#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <map>
#include <thread>

#include "operations/lanes.h"
#include "operations/workspace.h"
#include "support.h"

// What a training step allocates, and the memory that lasts from one pass to the next.

namespace nsn::test {
namespace {

/// Counts what the CPU allocator reports of this thread while it lives.
class Counter : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void* /*ptr*/, int64_t size, size_t /*total_allocated*/,
                         size_t /*total_reserved*/, c10::Device /*device*/) override {
    now += size;
    peak = std::max(peak, now);
    if (size > 0) ++blocks[size];
  }
  bool memoryProfilingEnabled() const override { return true; }

  int64_t now = 0, peak = 0;
  std::map<int64_t, int> blocks;
};

/// The counts of the second of two calls; the allocator forgets the sizes of blocks that it handed
/// out before somebody counted.
Counter count_second(const std::function<void()>& call) {
  const auto counter = std::make_shared<Counter>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counter);
  call();
  *counter = Counter();
  call();
  return *counter;
}

constexpr int64_t kWidth = 96, kBatch = 8;

/// The paper's network in small; a weight is the largest thing in it.
struct Training {
  Training() {
    torch::manual_seed(0);
    const auto hidden = DenseOptions(kWidth, kWidth).activation(torch::kReLU).dropout(0.5);
    net = Network(NetworkOptions()
                      .input({kWidth})
                      .block("hidden1", hidden)
                      .block("hidden2", hidden)
                      .block("output", DenseOptions(kWidth, 10))
                      .subnetwork("sub1", SubnetworkOptions({"hidden2", "output"}))
                      .subnetwork("sub2", SubnetworkOptions({"output"}))
                      .merge(merge::two_smallest_mean()));
    optimizer.emplace(net->parameters(), torch::optim::SGDOptions(0.01).momentum(0.9));
    x = at::randn({kBatch, kWidth});
    labels = at::randint(10, {kBatch}, at::kLong);
  }

  void step() {
    const at::Tensor loss = joint_loss(net->joint(x), labels);
    optimizer->zero_grad();
    loss.backward();
    optimizer->step();
  }

  Network net{nullptr};
  std::optional<FusedSGD> optimizer;
  at::Tensor x, labels;
};

TEST(Memory, NothingIsHeldBehindBackwardForALossThatIsKept) {
  // Eight layers with a MiB of derivatives, masks or outputs each.
  for (const bool gelu : {true, false}) {
    NetworkOptions options;
    options.input({256});
    for (int layer = 0; layer < 8; ++layer) {
      auto dense = DenseOptions(256, 256);
      if (gelu) {
        dense.activation(torch::kGELU);
      } else {
        dense.activation(torch::kReLU).dropout(0.5);
      }
      options.block("layer" + std::to_string(layer), dense);
    }
    Network net(options);
    const auto x = at::randn({1024, 256});
    const auto step = [&] {
      const at::Tensor loss = net->forward(x).sum();
      loss.backward();
      net->zero_grad(/*set_to_none=*/true);
      return loss;
    };
    step();
    const auto counter = std::make_shared<Counter>();
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, counter);
    const at::Tensor loss = step();
    EXPECT_LT(counter->now, 4096) << (gelu ? "GELU" : "ReLU and dropout");
    EXPECT_GT(counter->peak, gelu ? 8 << 20 : 4 << 20);
  }
}

TEST(StepMemory, OneGradientBufferForEachParameterAndNothingElseOfItsSize) {
  Training training;
  for (int i = 0; i < 3; ++i) training.step();
  const Counter counter = count_second([&] { training.step(); });
  const int64_t weight = kWidth * kWidth * 4;
  EXPECT_EQ(counter.blocks.at(weight), 2) << "hidden1 and hidden2";
  for (const auto& [bytes, number] : counter.blocks) {
    EXPECT_LE(bytes, weight) << number;
  }
  EXPECT_EQ(counter.now, 0) << "as many gradients went as came";
}

TEST(StepMemory, ComesFromTheStepBefore) {
  Training training;
  for (int i = 0; i < 3; ++i) training.step();
  std::map<void*, int> places;
  for (int i = 0; i < 5; ++i) {
    training.step();
    ++places[training.net->parameters()[0].grad().data_ptr()];
  }
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_LE(places.size(), 2U);
#endif
}

TEST(StepMemory, OutlivesTheNetworkWhereSomebodyHoldsIt) {
  at::Tensor gradient, expected;
  {
    Training training;
    training.step();
    training.step();
    gradient = training.net->parameters()[0].grad();
    expected = gradient.clone();
  }
  expect_same_bits(gradient, expected);
}

TEST(StepMemory, MayBeFreedByOtherThreads) {
  Training training;
  training.step();
  at::Tensor held = training.net->parameters()[0].grad();
  const at::Tensor copy = held.clone();
  std::thread other([moved = std::move(held), &copy]() mutable {
    EXPECT_TRUE(moved.equal(copy));
    moved.reset();
  });
  training.step();
  other.join();
  training.step();
}

TEST(StepMemory, GradientsThatAreHeldAreNotOverwritten) {
  Training training;
  std::vector<at::Tensor> held, copies;
  for (int i = 0; i < 6; ++i) {
    training.step();
    for (const at::Tensor& parameter : training.net->parameters()) {
      held.push_back(parameter.grad());
      copies.push_back(parameter.grad().clone());
    }
  }
  for (size_t i = 0; i < held.size(); ++i) expect_same_bits(held[i], copies[i]);
}

// -------------------------------------------------------------------------------------------------
// The workspace itself

const at::TensorOptions kFloats(at::kFloat);

TEST(Workspace, GivesFreedMemoryToTheSameSizeOnly) {
  const auto workspace = std::make_shared<Workspace>();
  at::Tensor a = workspace->empty({100, 3}, kFloats);
  EXPECT_EQ(a.sizes(), at::IntArrayRef({100, 3}));
  EXPECT_EQ(workspace->idle_bytes(), 0U);
  const void* place = a.data_ptr();
  a.reset();
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_EQ(workspace->idle_bytes(), 1200U);
  const at::Tensor other = workspace->empty({299}, kFloats);
  EXPECT_NE(other.data_ptr(), place);
  const at::Tensor same = workspace->empty({150}, kFloats.dtype(at::kDouble));
  EXPECT_EQ(same.data_ptr(), place);
  EXPECT_EQ(same.scalar_type(), at::kDouble);
#endif
  EXPECT_EQ(workspace->idle_bytes(), 0U);
}

TEST(Workspace, FreesWhatAWholePassDidNotUse) {
  const auto workspace = std::make_shared<Workspace>();
  workspace->begin_pass();
  workspace->empty({100}, kFloats);
  workspace->begin_pass();
  workspace->empty({200}, kFloats);
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_EQ(workspace->idle_bytes(), 1200U);
  workspace->begin_pass();
  EXPECT_EQ(workspace->idle_bytes(), 800U);
#endif
  workspace->begin_pass();
  workspace->begin_pass();
  EXPECT_EQ(workspace->idle_bytes(), 0U);
}

TEST(Workspace, MakesRoomBehindATensor) {
  const auto workspace = std::make_shared<Workspace>();
  functional::Room room{7};
  const at::Tensor tensor = workspace->empty({4, 5}, kFloats, &room);
  EXPECT_EQ(room.behind.sizes(), at::IntArrayRef({7}));
  EXPECT_EQ(room.behind.data_ptr<float>(), tensor.data_ptr<float>() + 20);
  EXPECT_TRUE(room.behind.is_alias_of(tensor));
  functional::Room none;
  workspace->empty({4}, kFloats, &none);
  EXPECT_FALSE(none.behind.defined());
}

TEST(Lanes, LayWhatFitsBehindTheirBuffer) {
  const auto workspace = std::make_shared<Workspace>();
  functional::Room room{6};
  detail::LaneBuffer buffer({workspace, &room}, 10, kFloats);
  Lanes lanes({buffer.next({2, 2}), buffer.next({3, 2})});
  const at::Tensor x = at::rand({3, 2});
  const at::Tensor laid = lanes.lay_behind(x, room);
  EXPECT_TRUE(laid.equal(x));
  // All three are one matrix now, which needs no copy.
  const at::Tensor stacked = detail::stack_rows({lanes[0], lanes[1], laid});
  EXPECT_EQ(stacked.data_ptr(), lanes[0].data_ptr());
  EXPECT_FALSE(lanes.lay_behind(at::rand({2, 2}), room).defined());
  EXPECT_FALSE(lanes.lay_behind(x.to(at::kDouble), room).defined());
  EXPECT_FALSE(lanes.lay_behind(x, {}).defined());
  EXPECT_FALSE(Lanes({at::rand({2, 2})}).lay_behind(x, room).defined()) << "another's room";
}

TEST(Lanes, TellWhatMayBeWritten) {
  detail::LaneBuffer buffer({}, 8, kFloats);
  const at::Tensor held = at::rand({4});
  Lanes lanes({buffer.next({4}), buffer.next({4}), at::rand({4}), held});
  EXPECT_FALSE(lanes.is_spare(0)) << "beside another lane";
  EXPECT_TRUE(lanes.is_spare(2));
  EXPECT_FALSE(lanes.is_spare(3)) << "held by somebody else";
  const Lanes copy = lanes;
  EXPECT_FALSE(lanes.is_spare(2)) << "in a copy too";
}

TEST(Lanes, GiveCallersMemoryOfTheirOwn) {
  detail::LaneBuffer buffer({}, 8, kFloats);
  Lanes lanes({buffer.next({4}).fill_(1.0), buffer.next({4}).fill_(2.0), at::ones({4})});
  const void* alone = lanes[2].data_ptr();
  const auto outputs = std::move(lanes).for_caller();
  EXPECT_FALSE(outputs[0].is_alias_of(outputs[1]));
  outputs[0].zero_();
  EXPECT_EQ(outputs[1].sum().item<float>(), 8.0F);
  EXPECT_EQ(outputs[2].data_ptr(), alone) << "no copy where none is needed";
}

TEST(Workspace, TensorsOutliveIt) {
  auto workspace = std::make_shared<Workspace>();
  const at::Tensor tensor = workspace->empty({100}, kFloats);
  workspace.reset();
  tensor.fill_(3.0);
  EXPECT_EQ(tensor.sum().item<float>(), 300.0F);
}

TEST(Workspace, TensorsAreAsAnyOther) {
  const auto workspace = std::make_shared<Workspace>();
  at::Tensor tensor = workspace->empty({2, 3}, kFloats).fill_(1.0);
  EXPECT_TRUE(tensor.is_contiguous());
  tensor.set_requires_grad(true);
  (tensor * 2).sum().backward();
  EXPECT_EQ(tensor.grad().sum().item<float>(), 12.0F);
  at::Tensor growing = workspace->empty({2}, kFloats).fill_(1.0);
  growing.resize_({1000});
  EXPECT_EQ(growing.narrow(0, 0, 2).sum().item<float>(), 2.0F);
  EXPECT_EQ(workspace->empty({0, 3}, kFloats).numel(), 0);
}

}  // namespace
}  // namespace nsn::test
