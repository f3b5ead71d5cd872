// Plans: where their values lie, and each kernel by itself against ATen in double precision, at the
// level that the process runs at; ctest runs them at all levels.

#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/conv_transpose2d.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_nearest2d.h>

#include <algorithm>
#include <limits>
#include <sstream>
#include <vector>

#include "guarded.h"
#include "plan/run.h"

namespace nsn::test {
namespace {

using plan::Function;
using plan::Pair;

const kernels::ParallelFor kInParts = [](int64_t count, int64_t grain, const kernels::Task& task) {
  for (int64_t begin = 0; begin < count; begin += grain) {
    task(begin, std::min(begin + grain, count));
  }
};

/// What one kernel makes of x, a batch. Tensors: float32, contiguous; a weight is (taps, in,
/// out). Nothing behind the output is touched.
at::Tensor make(const plan::Kernel& kernel, const at::Tensor& x, const Shape& out,
                const std::vector<at::Tensor>& tensors = {},
                const std::vector<at::Tensor>& others = {}) {
  plan::Plan plan;
  plan.values = {{x.sizes().slice(1).vec(), plan::Memory::kInput}, {out, plan::Memory::kOutput}};
  plan.steps.push_back({"", kernel, {0}, 1});
  if (std::holds_alternative<plan::Add>(kernel) && !others.empty()) {
    plan.steps[0].inputs.push_back(2);
  }
  for (const at::Tensor& other : others) plan.values.push_back({other.sizes().slice(1).vec()});
  plan.place();
  // Other values, which no step makes, lie behind those that it placed.
  for (size_t i = 0; i < others.size(); ++i) {
    plan.values[2 + i].offset = plan.arena;
    plan.arena += others[i].numel() / x.size(0);
  }
  const int64_t samples = x.size(0), threads = 3;
  std::vector<float> memory(static_cast<size_t>(plan::memory_for(plan, samples, threads)));
  for (size_t i = 0; i < others.size(); ++i) {
    const auto* data = others[i].const_data_ptr<float>();
    std::copy_n(data, others[i].numel(), memory.begin() + plan.values[2 + i].offset * samples);
  }
  std::vector<plan::Tensor> table;
  for (const at::Tensor& tensor : tensors) {
    table.push_back({nullptr, tensor.const_data_ptr<float>(),
                     tensor.dim() > 1 ? tensor.size(-2) : 1, tensor.size(-1)});
  }
  Random random(1);
  Guarded y(samples * plan.outputs, random);
  const auto wrong = plan::run(
      plan, {&table, samples, x.const_data_ptr(), y.data(), memory.data(), threads, &kInParts, {}});
  if (wrong) throw *wrong;
  y.expect_untouched();
  std::vector<int64_t> sizes{samples};
  sizes.insert(sizes.end(), out.begin(), out.end());
  return at::from_blob(y.data(), sizes, at::TensorOptions().dtype(at::kFloat)).clone();
}

/// (B, C, H, W) as (B, H, W, C), and back.
at::Tensor last(const at::Tensor& x) { return x.permute({0, 2, 3, 1}).contiguous(); }
at::Tensor first(const at::Tensor& x) { return x.permute({0, 3, 1, 2}); }

struct Geometry {
  explicit Geometry(Random& random) {
    for (const size_t d : {0U, 1U}) {
      kernel[d] = random.integer(1, 3);
      stride[d] = random.integer(1, 3);
      padding[d] = random.integer(0, kernel[d] / 2);
      dilation[d] = random.integer(1, 2);
      size[d] = random.integer(dilation[d] * (kernel[d] - 1) + 1, 9);
    }
  }
  Pair out(const Pair& spread) const {
    Pair result;
    for (const size_t d : {0U, 1U}) {
      result[d] = (size[d] + 2 * padding[d] - spread[d] * (kernel[d] - 1) - 1) / stride[d] + 1;
    }
    return result;
  }
  Pair size, kernel, stride, padding, dilation;
};

constexpr double kTolerance = 2e-6;

TEST(Plan, PoolsAreTorchs) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Random random(seed);
    const Geometry g(random);
    const int64_t channels = random.integer(1, 40);
    const Pair out = g.out({1, 1});
    const at::Tensor x = at::randn({2, channels, g.size[0], g.size[1]});
    for (const bool is_max : {true, false}) {
      const plan::Pool kernel{{g.size, out, g.kernel, g.stride, g.padding}, channels, is_max};
      const at::Tensor y = first(make(kernel, last(x), {out[0], out[1], channels}));
      const at::Tensor expected = is_max ? at::max_pool2d(x, g.kernel, g.stride, g.padding)
                                         : at::avg_pool2d(x, g.kernel, g.stride, g.padding);
      expect_close(y, expected, kTolerance, "seed " + std::to_string(seed));
    }
  }
}

TEST(Plan, APoolPassesNaN) {
  at::Tensor x = at::zeros({1, 20, 2, 2});
  x[0][3][1][0] = std::numeric_limits<float>::quiet_NaN();
  x[0][17][0][1] = std::numeric_limits<float>::quiet_NaN();
  const plan::Pool kernel{{{2, 2}, {1, 1}, {2, 2}, {2, 2}, {0, 0}}, 20, true};
  const at::Tensor y = make(kernel, last(x), {1, 1, 20}).flatten();
  for (int64_t c = 0; c < 20; ++c) EXPECT_EQ(at::isnan(y[c]).item<bool>(), c == 3 || c == 17);
}

TEST(Plan, ConvolutionsInGroupsAreTorchs) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Random random(seed);
    const Geometry g(random);
    const int64_t groups = random.integer(2, 20), in = groups * random.integer(1, 3);
    const int64_t out = groups * (random.chance(0.5) ? in / groups : random.integer(1, 3));
    const Pair size = g.out(g.dilation);
    const at::Tensor x = at::randn({2, in, g.size[0], g.size[1]});
    const at::Tensor weight = at::randn({out, in / groups, g.kernel[0], g.kernel[1]});
    const at::Tensor bias = at::randn({out}), scale = at::randn({out});
    const at::Tensor residual = at::randn({2, out, size[0], size[1]});
    const plan::Window window{g.size, size, g.kernel, g.stride, g.padding, g.dilation};
    plan::Convolve kernel{window, in, out, groups, 0, {}};
    kernel.epilogue = {1, 2, Function::kRelu, 2, Function::kTanh};
    const at::Tensor y = first(
        make(kernel, last(x), {size[0], size[1], out},
             {weight.flatten(2).permute({2, 1, 0}).contiguous(), scale, bias}, {last(residual)}));
    const at::Tensor z = at::conv2d(x, weight, {}, g.stride, g.padding, g.dilation, groups) *
                             scale.view({-1, 1, 1}) +
                         bias.view({-1, 1, 1});
    expect_close(y, (z.relu() + residual).tanh(), 1e-5, "seed " + std::to_string(seed));
  }
}

TEST(Plan, TransposedConvolutionsAreTorchs) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Random random(seed);
    const Geometry g(random);
    const int64_t in = random.integer(1, 20), out = random.integer(1, 20);
    Pair more;
    for (const size_t d : {0U, 1U}) {
      more[d] = random.integer(0, std::max(g.stride[d], g.dilation[d]) - 1);
    }
    const at::Tensor x = at::randn({2, in, g.size[0], g.size[1]});
    const at::Tensor weight = at::randn({in, out, g.kernel[0], g.kernel[1]});
    const at::Tensor expected =
        at::conv_transpose2d(x, weight, {}, g.stride, g.padding, more, 1, g.dilation);
    const Pair size{expected.size(2), expected.size(3)};
    const plan::Window window{size, g.size, g.kernel, g.stride, g.padding, g.dilation};
    const plan::ConvolveTransposed kernel{window, in, out, 0, {}};
    const at::Tensor y = first(make(kernel, last(x), {size[0], size[1], out},
                                    {weight.flatten(2).permute({2, 0, 1}).contiguous()}));
    expect_close(y, expected, 1e-5, "seed " + std::to_string(seed));
  }
}

TEST(Plan, EnlargingIsTorchs) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    Random random(seed);
    const Pair size{random.integer(1, 6), random.integer(1, 6)};
    const int64_t factor = random.integer(1, 4), channels = random.integer(1, 40);
    const at::Tensor x = at::randn({2, channels, size[0], size[1]});
    const std::vector<int64_t> out{size[0] * factor, size[1] * factor};
    for (const bool is_bilinear : {false, true}) {
      const plan::Upsample kernel{size, factor, channels, is_bilinear};
      const at::Tensor y = first(make(kernel, last(x), {out[0], out[1], channels}));
      const at::Tensor expected =
          is_bilinear ? at::upsample_bilinear2d(x, out, false) : at::upsample_nearest2d(x, out);
      expect_close(y, expected, kTolerance, "seed " + std::to_string(seed));
    }
  }
}

TEST(Plan, NormsAreTorchs) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Random random(seed);
    const int64_t rows = random.integer(1, 5);
    const int64_t columns = random.chance(0.1) ? 3000 : random.integer(1, 70);
    // Far from zero, where sums of squares would lose the variance.
    const at::Tensor x = at::randn({2, rows, columns}) + 100.0 * at::randn({1});
    const at::Tensor weight = at::randn({columns}), bias = at::randn({columns});
    const at::Tensor wide = x.to(at::kDouble);
    const std::string what = "seed " + std::to_string(seed);
    for (const bool centred : {true, false}) {
      const plan::NormalizeRows kernel{rows, columns, 1e-3, centred, 0, 1};
      const at::Tensor y = make(kernel, x, {rows, columns}, {weight, bias});
      const at::Tensor own = weight.to(at::kDouble);
      const at::Tensor expected =
          centred ? at::layer_norm(wide, {columns}, own, bias.to(at::kDouble), 1e-3)
                  : at::rms_norm(wide, {columns}, own, 1e-3) + bias.to(at::kDouble);
      expect_close(y.to(at::kDouble), expected, 1e-5, what);
    }
    const int64_t groups = random.integer(1, 4), channels = groups * random.integer(1, 20);
    const at::Tensor image = at::randn({2, channels, rows, 3}) + 10.0;
    const at::Tensor scale = at::randn({channels}), shift = at::randn({channels});
    const plan::NormalizeGroups kernel{3 * rows, channels, groups, 1e-3, 0, 1};
    expect_close(first(make(kernel, last(image), {rows, 3, channels}, {scale, shift})),
                 at::group_norm(image, groups, scale, shift, 1e-3), 1e-4, what);
  }
}

TEST(Plan, NormsShowWhatHasExploded) {
  const at::Tensor x = at::randn({1, 1, 20}) * 1e25;
  EXPECT_TRUE(at::isnan(make(plan::NormalizeRows{1, 20, 1e-5, true, {}, {}}, x, {1, 20}))
                  .all()
                  .item<bool>());
  at::Tensor row = at::randn({1, 1, 20});
  row[0][0][7] = 3e38;
  EXPECT_TRUE(at::isnan(make(plan::NormalizeRows{1, 20, 1e-5, true, {}, {}}, row, {1, 20}))
                  .all()
                  .item<bool>());
  EXPECT_TRUE(at::isnan(make(plan::NormalizeGroups{1, 20, 2, 1e-5, {}, {}}, row, {1, 20}))
                  .any()
                  .item<bool>());
}

TEST(Plan, MeansOfManyPositionsAreExact) {
  const at::Tensor x = at::full({1, 224 * 224, 19}, 0.1);
  expect_close(make(plan::GlobalAverage{224 * 224, 19}, x, {19}), at::full({1, 19}, 0.1), 1e-7);
}

TEST(Plan, FunctionsAreTorchs) {
  const at::Tensor x = at::cat(
      {at::randn({1, 200}) * 3.0, at::rand({1, 100}) * 0.02 - 0.01, at::randn({1, 37}) * 60.0}, 1);
  const at::Tensor wide = x.to(at::kDouble);
  const std::vector<std::pair<Function, at::Tensor>> cases{
      {Function::kRelu, at::relu(wide)}, {Function::kGelu, at::gelu(wide)},
      {Function::kSilu, at::silu(wide)}, {Function::kSigmoid, at::sigmoid(wide)},
      {Function::kTanh, at::tanh(wide)},
  };
  for (const auto& [function, expected] : cases) {
    const std::string name = plan::name_of(function);
    const at::Tensor y = make(plan::Apply{337, function}, x, {337});
    expect_close(y.to(at::kDouble), expected, 5e-7, name);
    // The two halves of the middle one of (1, 2 * 7, 12).
    const at::Tensor both = at::randn({2, 14, 12});
    const at::Tensor half = make(plan::Gate{1, 7, 12, function}, both, {7, 12});
    const at::Tensor gate =
        make(plan::Apply{84, function}, both.narrow(1, 7, 7).contiguous(), {7, 12});
    expect_close(half, both.narrow(1, 0, 7) * gate, 1e-6, name);
  }
  const float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const auto& [function, expected] : cases) {
    const at::Tensor y = make(plan::Apply{20, function}, at::full({1, 20}, kNaN), {20});
    EXPECT_TRUE(at::isnan(y).all().item<bool>()) << plan::name_of(function);
  }
  // Beyond what an exponential of float32 holds.
  const at::Tensor low = at::tensor({-3e38F, -1e35F, -100.0F}).view({1, 3});
  expect_same_bits(make(plan::Apply{3, Function::kSilu}, low, {3}), at::silu(low));
  expect_same_bits(make(plan::Apply{3, Function::kSigmoid}, low, {3}), at::zeros({1, 3}));
  const at::Tensor far =
      make(plan::Apply{2, Function::kTanh}, at::tensor({1e30F, -1e30F}).view({1, 2}), {2});
  expect_close(far, at::tensor({1.0F, -1.0F}).view({1, 2}), 0.0);
}

TEST(Plan, AttentionIsTorchs) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Random random(seed);
    const int64_t positions = random.integer(1, 40), heads = random.integer(1, 3);
    const int64_t head_dim = random.integer(1, 20), out = heads * head_dim;
    const bool causal = random.chance(0.5);
    const at::Tensor x = at::randn({2, positions, 3 * out});
    const auto parts = x.view({2, positions, 3, heads, head_dim}).unbind(2);
    const at::Tensor expected =
        at::scaled_dot_product_attention(parts[0].transpose(1, 2), parts[1].transpose(1, 2),
                                         parts[2].transpose(1, 2), {}, 0.0, causal)
            .transpose(1, 2)
            .flatten(2);
    expect_close(make(plan::Attend{positions, heads, head_dim, causal}, x, {positions, out}),
                 expected, 2e-6, "seed " + std::to_string(seed));
  }
}

TEST(Plan, WhatMovesElements) {
  const at::Tensor x = at::randn({3, 4, 5});
  expect_same_bits(make(plan::Transpose{4, 5}, x, {5, 4}), x.transpose(1, 2).contiguous());
  expect_same_bits(make(plan::Copy{20}, x, {4, 5}), x);
  expect_same_bits(make(plan::Pad{4, 2, 5}, x, {4, 7}), at::constant_pad_nd(x, {2, 0}));
  const at::Tensor other = at::randn({3, 4, 5}), row = at::randn({4, 5});
  expect_same_bits(make(plan::Add{20, {}}, x, {4, 5}, {}, {other}), x + other);
  expect_same_bits(make(plan::Add{20, 0}, x, {4, 5}, {row}), x + row);
  expect_close(make(plan::GlobalAverage{4, 5}, x, {5}), x.mean(1), 1e-6);
  const at::Tensor scale = at::randn({4});
  expect_close(make(plan::ScaleAndShift{1, 4, 5, 0, {}}, x, {4, 5}, {scale}),
               x * scale.view({4, 1}), 1e-6);
  const at::Tensor table = at::randn({6, 8}), numbers = at::randint(6, {3, 7});
  // Of 8 columns that lie there, 5.
  expect_same_bits(make(plan::Embed{7, 5, 6, 0}, numbers.to(at::kLong), {7, 5}, {table}),
                   table.narrow(1, 0, 5).index_select(0, numbers.flatten()).view({3, 7, 5}));
  EXPECT_THROW(make(plan::Embed{1, 5, 6, 0}, at::full({1, 1}, 6, at::kLong), {1, 5}, {table}),
               plan::NoSuchRow);
  EXPECT_THROW(make(plan::Embed{1, 5, 6, 0}, at::full({1, 1}, -1, at::kLong), {1, 5}, {table}),
               plan::NoSuchRow);
}

TEST(Plan, ValuesThatLiveAtTheSameTimeLieApart) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    plan::Plan plan;
    plan.values.push_back({{4}, plan::Memory::kInput});
    const int64_t count = random.integer(1, 12);
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const auto made = static_cast<int64_t>(plan.values.size());
      const auto pick = [&] { return static_cast<size_t>(random.integer(0, made - 1)); };
      const int64_t size = random.integer(1, 100);
      sum += (size + 15) / 16 * 16;
      plan.values.push_back({{size}, i + 1 < count ? plan::Memory::kArena : plan::Memory::kOutput});
      plan::Multiply kernel{1, 1, 1, 0, {}};
      if (random.chance(0.3)) kernel.epilogue.residual = pick();
      plan.steps.push_back({"", kernel, {pick()}, static_cast<size_t>(made)});
    }
    plan.place();
    EXPECT_LE(plan.arena, sum);
    // Runs it with a mark in each element of the arena: who wrote it.
    std::vector<size_t> owner(static_cast<size_t>(plan.arena), 0);
    const auto holds = [&](size_t value) {
      const plan::Value& at = plan.values[value];
      if (at.memory != plan::Memory::kArena) return;
      EXPECT_EQ(at.offset % 16, 0);
      for (int64_t i = 0; i < at.shape[0]; ++i) {
        ASSERT_EQ(owner[static_cast<size_t>(at.offset + i)], value) << "seed " << seed;
      }
    };
    for (const plan::Step& step : plan.steps) {
      const plan::Value& to = plan.values[step.output];
      for (int64_t i = 0; to.memory == plan::Memory::kArena && i < to.shape[0]; ++i) {
        owner[static_cast<size_t>(to.offset + i)] = step.output;
      }
      // What a step reads is there while it writes.
      holds(step.inputs[0]);
      const auto& residual = std::get<plan::Multiply>(step.kernel).epilogue.residual;
      if (residual) holds(*residual);
    }
  }
}

TEST(Plan, ValuesOfAChainShareMemory) {
  plan::Plan plan;
  plan.values.push_back({{4}, plan::Memory::kInput});
  for (size_t i = 0; i < 6; ++i) {
    plan.values.push_back({{32}, i < 5 ? plan::Memory::kArena : plan::Memory::kOutput});
    plan.steps.push_back({"", plan::Apply{32, Function::kRelu}, {i}, i + 1});
  }
  plan.place();
  EXPECT_EQ(plan.arena, 64);
}

}  // namespace
}  // namespace nsn::test
