#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <set>
#include <thread>

#include "support.h"

// Masks and the fused ReLU + dropout.

namespace nsn::test {
namespace {

using functional::Dropout;
using functional::dropout_mask;
using functional::relu_dropout;
using functional::ReluDropout;

constexpr int64_t kMany = 200'000;

/// relu_dropout by ATen operations alone.
std::vector<at::Tensor> relu_dropout_plain(at::TensorList inputs, const ReluDropout& options) {
  const functional::PlainGuard plain;
  return relu_dropout(inputs, options);
}

/// Standard deviations between `count` of `n` and what a probability p lets expect.
double deviations(double count, double n, double p) {
  return (count - n * p) / std::sqrt(n * p * (1.0 - p));
}

double kept(const at::Tensor& mask) { return mask.sum().item<double>(); }

TEST(DropoutMask, ZeroKeepsAndOneDropsAll) {
  for (const int64_t size : {0, 1, 63, 64, 65, 1000}) {
    for (uint64_t key = 0; key < 20; ++key) {
      EXPECT_EQ(kept(dropout_mask({size}, {0.0, key})), static_cast<double>(size));
      EXPECT_EQ(kept(dropout_mask({size}, {1.0, key})), 0.0);
    }
  }
  // Close to the ends, where rounding could make one of them.
  EXPECT_EQ(kept(dropout_mask({kMany}, {1e-12, 1})), static_cast<double>(kMany));
  EXPECT_LT(kept(dropout_mask({kMany}, {1.0 - 1e-12, 1})), 5.0);
}

TEST(DropoutMask, KeepsTheRightFraction) {
  for (const double p : {0.01, 0.2, 0.5, 0.8, 0.99}) {
    for (const uint64_t key : {0ULL, 1ULL, 2ULL, 0xFFFFFFFFFFFFFFFFULL, 1ULL << 32}) {
      const double count = kept(dropout_mask({kMany}, {p, key}));
      EXPECT_LT(std::abs(deviations(count, kMany, 1.0 - p)), 4.5) << "p " << p << ", key " << key;
    }
  }
}

TEST(DropoutMask, ElementsAreIndependent) {
  // At p = 1/2 two elements agree half of the time, whatever the distance between them; the
  // distances are those of neighbours, words, vector registers and rows.
  for (const uint64_t key : {3ULL, 77ULL}) {
    const at::Tensor mask = dropout_mask({kMany}, {0.5, key});
    for (const int64_t lag : {1, 2, 3, 7, 8, 16, 63, 64, 65, 128, 784, 1024, 4096, 65536}) {
      const int64_t n = kMany - lag;
      const double agree = kept(mask.narrow(0, 0, n).eq(mask.narrow(0, lag, n)));
      EXPECT_LT(std::abs(deviations(agree, static_cast<double>(n), 0.5)), 4.5) << "lag " << lag;
    }
  }
}

TEST(DropoutMask, BytesAreUniform) {
  // Chi-square over the 256 patterns of eight neighbours: 255 degrees of freedom, so 255 +- 22.6.
  for (const uint64_t key : {5ULL, 6ULL, 1ULL << 40}) {
    const at::Tensor bits = dropout_mask({kMany}, {0.5, key}).view({-1, 8}).to(at::kLong);
    const at::Tensor powers = at::tensor({1, 2, 4, 8, 16, 32, 64, 128}, at::kLong);
    const at::Tensor counts = at::bincount((bits * powers).sum(1), {}, 256).to(at::kDouble);
    const double expected = static_cast<double>(kMany) / 8.0 / 256.0;
    const double chi_square = (counts - expected).square().sum().item<double>() / expected;
    EXPECT_GT(chi_square, 255.0 - 5 * 22.6) << "key " << key;
    EXPECT_LT(chi_square, 255.0 + 5 * 22.6) << "key " << key;
  }
}

TEST(DropoutMask, KeysAreIndependent) {
  const at::Tensor mask = dropout_mask({kMany}, {0.5, 40});
  for (const uint64_t other : {41ULL, 40ULL + (1ULL << 32), 40ULL ^ (1ULL << 63), 104ULL}) {
    const double agree = kept(mask.eq(dropout_mask({kMany}, {0.5, other})));
    EXPECT_LT(std::abs(deviations(agree, kMany, 0.5)), 4.5) << "key " << other;
  }
  expect_same_bits(dropout_mask({kMany}, {0.5, 40}), mask);
}

TEST(DropoutMask, ElementsDependOnTheirIndexAlone) {
  const at::Tensor long_mask = dropout_mask({1000}, {0.3, 8});
  for (const int64_t size : {0, 1, 63, 64, 65}) {
    expect_same_bits(dropout_mask({size}, {0.3, 8}), long_mask.narrow(0, 0, size));
  }
  expect_same_bits(dropout_mask({10, 100}, {0.3, 8}), long_mask.view({10, 100}));
}

TEST(DropoutMask, DoesNotDependOnThreads) {
  at::Tensor alone;
  {
    const Threads one(1);
    alone = dropout_mask({kMany}, {0.4, 12});
  }
  const Threads two(2);
  // Proof that two threads run at all with this size of task, where the compiler has OpenMP.
#ifdef _OPENMP
  constexpr size_t kExpected = 2;
#else
  constexpr size_t kExpected = 1;
#endif
  std::mutex mutex;
  std::set<std::thread::id> threads;
  at::parallel_for(0, kMany / 64, 512, [&](int64_t begin, int64_t end) {
    static_cast<void>(begin);
    static_cast<void>(end);
    const std::lock_guard<std::mutex> lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  ASSERT_EQ(threads.size(), kExpected);
  expect_same_bits(dropout_mask({kMany}, {0.4, 12}), alone);
}

TEST(DropoutMask, BelongsToTheWayOfALane) {
  // "twin" keeps the same blocks as base in the same way; "calm" and "late" do not.
  Network net(NetworkOptions()
                  .input({16})
                  .block("a", DenseOptions(16, 16).dropout(0.5))
                  .block("b", DenseOptions(16, 16).dropout(0.5))
                  .subnetwork("twin", SubnetworkOptions({"a", "b"}))
                  .subnetwork("calm", SubnetworkOptions({"a", "b"}).dropout("a", 0.4))
                  .subnetwork("late", SubnetworkOptions({"b"})));
  const auto mask = [&](const std::string& name, const std::string& block) {
    return net->core().dropout_mask(7, name, block, 0.5, {64, 16});
  };
  expect_same_bits(mask("base", "a"), mask("twin", "a"));
  expect_same_bits(mask("base", "b"), mask("twin", "b"));
  const std::vector<std::pair<at::Tensor, at::Tensor>> different = {
      {mask("base", "a"), mask("calm", "a")},
      {mask("base", "b"), mask("calm", "b")},
      {mask("base", "b"), mask("late", "b")},
      {mask("calm", "b"), mask("late", "b")},
      {mask("base", "a"), mask("base", "b")}};
  for (const auto& [one, other] : different) {
    EXPECT_LT(std::abs(deviations(kept(one.eq(other)), 1024.0, 0.5)), 4.5);
  }
  const auto outputs = net->joint(at::randn({8, 16}));
  expect_same_bits(outputs["base"], outputs["twin"]);
  EXPECT_FALSE(outputs["base"].equal(outputs["calm"]));
  expect_throws_with([&] { net->core().dropout_mask(7, "late", "a", 0.5, {1}); },
                     {"'late'", "no block 'a'"});
}

TEST(ReluDropout, EqualsThePlainOperationsInValuesAndGradients) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const int64_t size : {0, 1, 63, 64, 65, 1000}) {
      for (const double p : {0.0, 0.3, 1.0}) {
        for (const bool relu : {false, true}) {
          SCOPED_TRACE(std::string(c10::toString(dtype)) + ", " + std::to_string(size) + ", p " +
                       std::to_string(p) + (relu ? ", relu" : ""));
          torch::manual_seed(static_cast<uint64_t>(size));
          const at::Tensor a = at::randn({size}).to(dtype).set_requires_grad(true);
          const at::Tensor b = at::randn({2, size}).to(dtype).set_requires_grad(true);
          const at::Tensor da = at::randn({size}).to(dtype), db = at::randn({2, size}).to(dtype);
          const std::vector<Dropout> dropout = {{p, 5}, {p / 2, 6}};
          const auto fused = relu_dropout({a, b}, {relu, dropout, {0, 1}});
          const auto plain = relu_dropout_plain({a, b}, {relu, dropout, {0, 1}});
          const auto fused_gradients = torch::autograd::grad(fused, {a, b}, {da, db});
          const auto plain_gradients = torch::autograd::grad(plain, {a, b}, {da, db});
          for (const size_t i : {0, 1}) {
            EXPECT_TRUE(fused[i].equal(plain[i]));
            EXPECT_TRUE(fused_gradients[i].equal(plain_gradients[i]));
            EXPECT_EQ(fused[i].scalar_type(), dtype);
          }
        }
      }
    }
  }
}

TEST(ReluDropout, PassesNaNAndDropsInfinities) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const at::Tensor x = at::tensor({nan, -1.0, infinity, -infinity, 2.0}, at::kDouble).to(dtype);
    const at::Tensor y = relu_dropout({x}, {true, {{0.0, 0}}, {0}})[0];
    EXPECT_TRUE(y[0].isnan().item<bool>());
    EXPECT_TRUE(y.narrow(0, 1, 4).equal(at::relu(x).narrow(0, 1, 4)));
    expect_same_bits(relu_dropout({x}, {true, {{1.0, 0}}, {0}})[0], at::zeros_like(x));
    expect_same_bits(relu_dropout_plain({x}, {true, {{1.0, 0}}, {0}})[0], at::zeros_like(x));
  }
}

TEST(ReluDropout, TakesTensorsThatAreNotContiguous) {
  const at::Tensor x = at::randn({7, 70}, at::kDouble).t().set_requires_grad(true);
  const auto fused = relu_dropout({x}, {true, {{0.5, 9}}, {0}})[0];
  const auto plain = relu_dropout_plain({x}, {true, {{0.5, 9}}, {0}})[0];
  EXPECT_TRUE(fused.equal(plain));
  const at::Tensor weights = at::randn({7, 70}, at::kDouble).t();
  EXPECT_TRUE(torch::autograd::grad({fused}, {x}, {weights})[0].equal(
      torch::autograd::grad({plain}, {x}, {weights})[0]));
}

TEST(ReluDropout, LanesOfOneWayShareTheForwardAndKeepTheirGradients) {
  const at::Tensor x = at::randn({100}, at::kDouble).set_requires_grad(true);
  const std::vector<Dropout> dropout(2, {0.5, 4});
  const auto lanes = relu_dropout({x, x}, {true, dropout, {0, 0}});
  EXPECT_EQ(lanes[0].data_ptr(), lanes[1].data_ptr());
  (lanes[0].sum() + 2 * lanes[1].sum()).backward();
  const at::Tensor expected =
      (dropout_mask({100}, dropout[0]) * x.detach().gt(0)).to(at::kDouble) * 2 * 3;
  expect_close(x.grad(), expected, 1e-15);
}

TEST(ReluDropout, IsTheSameForOneAndTwoThreads) {
  const at::Tensor x = at::randn({kMany});
  at::Tensor alone;
  {
    const Threads one(1);
    alone = relu_dropout({x}, {true, {{0.5, 1}}, {0}})[0];
  }
  const Threads two(2);
  expect_same_bits(relu_dropout({x}, {true, {{0.5, 1}}, {0}})[0], alone);
}

}  // namespace
}  // namespace nsn::test
