// Random files, run, against the reference interpreter; ctest runs them at all levels of vectors.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "folder.h"
#include "kernels/pointwise.h"
#include "kernels/softmax.h"
#include "nsn/runtime/session.h"
#include "reference.h"
#include "sample.h"

namespace nsn::test {
namespace {

using runtime::Model;
using runtime::Session;
using runtime::Status;

/// What the reference says of all samples of an input.
template <typename Input>
std::vector<double> expected_of(const Sample& sample, size_t network,
                                const std::vector<Input>& input, int64_t samples) {
  const int64_t in = plan::numel(sample.file().networks[network].plan.values[0].shape);
  std::vector<double> result;
  for (int64_t s = 0; s < samples; ++s) {
    const auto begin = input.begin() + s * in;
    const auto one = reference(sample, network, std::vector<double>(begin, begin + in));
    result.insert(result.end(), one.begin(), one.end());
  }
  return result;
}

/// What a session computes.
template <typename Input>
std::vector<float> output_of(const Sample& sample, Session& session, size_t network,
                             const std::vector<Input>& input, int64_t samples) {
  const int64_t out = plan::numel(sample.file().networks[network].plan.values.back().shape);
  // A guard behind the output, which nothing may touch.
  const auto count = static_cast<size_t>(out * samples);
  std::vector<float> output(count + 16, 12345.0F);
  EXPECT_EQ(session.run(network, input.data(), output.data(), samples), Status::kOk);
  for (size_t i = count; i < output.size(); ++i) EXPECT_EQ(output[i], 12345.0F);
  output.resize(count);
  return output;
}

/// The largest difference from what is expected, as a share of its largest magnitude.
double difference(const std::vector<double>& expected, const std::vector<float>& output) {
  double most = 0, magnitude = 1e-3;
  for (size_t i = 0; i < output.size(); ++i) {
    if (std::isinf(expected[i])) continue;  // of a pool that sees nothing but padding
    magnitude = std::max(magnitude, std::abs(expected[i]));
    most = std::max(most, std::abs(expected[i] - output[i]));
  }
  return most / magnitude;
}

template <typename Input>
double difference(const Sample& sample, Session& session, size_t network,
                  const std::vector<Input>& input, int64_t samples) {
  const auto expected = expected_of(sample, network, input, samples);
  return difference(expected, output_of(sample, session, network, input, samples));
}

TEST(Runtime, RandomNetworksAreTheReference) {
  const Folder folder;
  std::set<size_t> kinds;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Sample sample(seed);
    sample.network("net", sample.integer(1, 400), sample.integer(1, 8));
    write(folder / "net", sample.bytes());
    const Model model = Model::open(folder / "net");
    for (const auto& step : sample.file().networks[0].plan.steps) kinds.insert(step.kernel.index());
    const int64_t samples = sample.integer(1, 5);
    const int64_t in = plan::numel(model.subnetworks()[0].input);
    const auto input = sample.numbers(samples * in);
    for (const int threads : {1, 3}) {
      if (threads > 1 && !kHasThreads) continue;
      Session session(model, {8, threads, {}});
      EXPECT_LE(difference(sample, session, 0, input, samples), 2e-4) << "seed " << seed;
    }
  }
  // All but Embed, Attend's neighbour, which is the next test's, and Call.
  EXPECT_GE(kinds.size(), std::variant_size_v<plan::Kernel> - 2);
}

TEST(Runtime, TransformersAreTheReference) {
  const Folder folder;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Sample sample(seed);
    sample.transformer("net", sample.integer(1, 90), sample.integer(1, 3), sample.integer(1, 20),
                       sample.chance(0.5));
    write(folder / "net", sample.bytes());
    const Model model = Model::open(folder / "net");
    const int64_t samples = sample.integer(1, 3);
    std::vector<int64_t> input;
    for (int64_t i = 0; i < samples * model.subnetworks()[0].input[0]; ++i) {
      input.push_back(sample.integer(0, 19));
    }
    for (const int threads : {1, 2}) {
      if (threads > 1 && !kHasThreads) continue;
      Session session(model, {3, threads, {}});
      EXPECT_LE(difference(sample, session, 0, input, samples), 1e-5) << "seed " << seed;
    }
  }
}

TEST(Runtime, WidthsOfOneWeightAreTheReference) {
  const Folder folder;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Sample sample(seed);
    std::set<int64_t> widths;
    for (int64_t i = 0; i < 4; ++i) widths.insert(sample.integer(1, 130));
    const int64_t in = sample.integer(1, 70), out = sample.integer(1, 40);
    sample.mlp({widths.begin(), widths.end()}, in, out);
    write(folder / "net", sample.bytes());
    const Model model = Model::open(folder / "net");
    Session session(model, {20, 1, {}});
    for (size_t i = 0; i < widths.size(); ++i) {
      const int64_t samples = sample.integer(1, 20);
      const auto input = sample.numbers(samples * in);
      EXPECT_LE(difference(sample, session, i, input, samples), 2e-6) << "seed " << seed;
    }
  }
}

/// Of (7, 6) positions; some leave lines over, or columns.
constexpr plan::Pair kPools[] = {{1, 1}, {2, 2}, {4, 6}, {3, 4}};

TEST(Runtime, WidthsOfConvolutionsAreTheReference) {
  // Widths above 32, so that weights lie in several boxes, of which a slice ends in any.
  const Folder folder;
  for (uint64_t seed = 0; seed < 16; ++seed) {
    Sample sample(seed);
    const int64_t most = sample.integer(33, 80);
    const std::set<int64_t> widths{most, sample.integer(17, 40), sample.integer(1, 32)};
    sample.cnn({widths.begin(), widths.end()}, kPools[seed % 4]);
    write(folder / "net", sample.bytes());
    const Model model = Model::open(folder / "net");
    Session session(model, {3, 1, {}});
    for (size_t i = 0; i < widths.size(); ++i) {
      const int64_t samples = sample.integer(1, 3);
      const auto input = sample.numbers(samples * plan::numel(model.subnetworks()[i].input));
      EXPECT_LE(difference(sample, session, i, input, samples), 1e-5) << "seed " << seed;
    }
  }
}

TEST(Runtime, LargeKernelsAreTheReference) {
  // More taps than are multiplied at a time, all of which some windows have inside.
  const Folder folder;
  for (uint64_t seed = 0; seed < 6; ++seed) {
    Sample sample(seed);
    sample.cnn({2, 7}, kPools[seed % 4], {19, 20}, {17, 19});
    write(folder / "net", sample.bytes());
    const Model model = Model::open(folder / "net");
    Session session(model, {2, 1, {}});
    for (const size_t i : {0U, 1U}) {
      const auto input = sample.numbers(2 * plan::numel(model.subnetworks()[i].input));
      EXPECT_LE(difference(sample, session, i, input, 2), 1e-5) << "seed " << seed;
    }
  }
}

class Tiles : public testing::TestWithParam<uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Seeds, Tiles, testing::Range<uint64_t>(0, 4));

TEST_P(Tiles, EachByItselfIsTheReference) {
  // Weights so large that threads share the tiles of each product; the last block of rows has
  // fewer, and the last tile may have taken rows of the one before. It changes no bit.
  const Folder folder;
  runtime::SessionOptions options{41, 2, {}}, at_once = options;
  options.parallel_for = [](int64_t count, int64_t /*grain*/, auto* call, const void* task) {
    for (int64_t i = 0; i < count; ++i) call(task, i, i + 1);
  };
  at_once.parallel_for = [](int64_t count, int64_t /*grain*/, auto* call, const void* task) {
    call(task, 0, count);
  };
  const uint64_t seed = GetParam();
  // Of 48 of 64 features the second panel is half empty; of 80 the third is a half one.
  for (const std::vector<int64_t>& widths :
       std::vector<std::vector<int64_t>>{{}, {37}, {48, 64}, {80}, {96}}) {
    Sample sample(seed);
    if (widths.empty()) {
      sample.cnn({130}, kPools[seed]);
    } else {
      sample.mlp(widths, 4096, 3);
    }
    write(folder / "net", sample.bytes());
    const Model model = Model::open(folder / "net");
    Session session(model, options), whole(model, at_once);
    const auto input = sample.numbers(41 * plan::numel(model.subnetworks()[0].input));
    const auto expected = expected_of(sample, 0, input, 41);
    for (const int64_t samples : {1, 7, 8, 9, 13, 17, 25, 26, 30, 41}) {
      const auto output = output_of(sample, session, 0, input, samples);
      EXPECT_LE(difference(expected, output), 1e-5) << samples << " samples";
      EXPECT_EQ(output, output_of(sample, whole, 0, input, samples)) << samples << " samples";
    }
  }
}

TEST(Runtime, ALargeBatchInPartsIsTheSameAsOneByOne) {
  const Folder folder;
  Sample sample(3);
  sample.network("net", 600, 6);
  write(folder / "net", sample.bytes());
  const Model model = Model::open(folder / "net");
  constexpr int64_t kSamples = 700;
  const auto input = sample.numbers(kSamples * 600);
  for (const int threads : {1, 2, 5}) {
    if (threads > 1 && !kHasThreads) continue;
    Session session(model, {kSamples, threads, {}});
    EXPECT_LE(difference(sample, session, 0, input, kSamples), 1e-4);
  }
}

TEST(Runtime, WhatIsNoNumberIsNotHidden) {
  // Processors differ in what the largest of a number and a NaN is.
  std::vector<float> x(23, 0.5F), y(23);
  const auto count = static_cast<int64_t>(x.size());
  for (const size_t at : {0U, 13U, 22U}) {
    x[at] = NAN;
    for (const auto function : {plan::Function::kRelu, plan::Function::kGelu, plan::Function::kSilu,
                                plan::Function::kSigmoid, plan::Function::kTanh}) {
      kernels::run(kernels::Apply{function, x.data(), nullptr, count, y.data()});
      for (size_t i = 0; i < y.size(); ++i) {
        EXPECT_EQ(std::isnan(y[i]), i == at) << plan::name_of(function) << ' ' << i;
      }
    }
    for (const float what : {NAN, INFINITY}) {
      x[at] = what;
      kernels::row_softmax(x.data(), y.data(), count, 1.0F);
      EXPECT_TRUE(std::all_of(y.begin(), y.end(), [](float each) { return std::isnan(each); }));
    }
    x[at] = 0.5F;
  }
}

}  // namespace
}  // namespace nsn::test
