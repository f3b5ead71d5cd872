// The kernels by themselves, at the level that the process runs at; ctest runs them at all levels.

#include <nsn/operations/cpu.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "guarded.h"
#include "kernels/elementwise.h"
#include "kernels/matrix_product.h"
#include "kernels/mix.h"
#include "kernels/pointwise.h"
#include "kernels/softmax.h"

namespace nsn::test {
namespace {

/// Two threads' worth of tasks, in parts as small as they may be.
void in_parts(int64_t count, int64_t grain, const kernels::Task& task) {
  for (int64_t begin = 0; begin < count; begin += grain) {
    task(begin, std::min(begin + grain, count));
  }
}

void at_once(int64_t count, int64_t /*grain*/, const kernels::Task& task) { task(0, count); }

/// A matrix of some layout.
struct Matrix {
  Matrix(int64_t rows, int64_t columns, Random& random)
      : by_rows(random.chance(0.5)),
        gap(random.chance(0.5) ? 0 : random.integer(1, 5)),
        row(by_rows ? columns + gap : 1),
        column(by_rows ? 1 : rows + gap),
        memory((by_rows ? rows : columns) * ((by_rows ? columns : rows) + gap), random) {}
  float at(int64_t i, int64_t j) const { return memory[i * row + j * column]; }

  bool by_rows;
  int64_t gap, row, column;
  Guarded memory;
};

TEST(Kernels, ReportALevelThatTheProcessorHas) {
  const auto levels = cpu_levels();
  EXPECT_NE(std::find(levels.begin(), levels.end(), cpu_level()), levels.end());
}

TEST(Kernels, MatrixProductsOfAllShapesAndLayouts) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    Random random(seed);
    const auto extent = [&] {
      return random.chance(0.1) ? random.integer(100, 300) : random.integer(1, 70);
    };
    const int64_t m = extent(), n = extent();
    const int64_t k = random.chance(0.05) ? random.integer(1000, 2100) : extent();
    Matrix a(m, k, random), b(k, n, random), c(m, n, random);
    c.row = n + c.gap;
    c.memory = Guarded(m * c.row, random);
    const Matrix before = c;
    Matrix other = c;
    const bool adds = random.chance(0.5);
    const float alpha = random.chance(0.5) ? 1.0F : -0.75F;
    const auto run = [&](Matrix& to, auto parallel_for) {
      kernels::run({m, n, k, a.memory.data(), a.row, a.column, b.memory.data(), b.row, b.column,
                    to.memory.data(), to.row, alpha, adds},
                   parallel_for);
    };
    run(c, in_parts);
    run(other, at_once);
    c.memory.expect_untouched();
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < c.row; ++j) {
        ASSERT_EQ(c.memory[i * c.row + j], other.memory[i * c.row + j])
            << "seed " << seed << ", in parts and at once";
        const float old = before.memory[i * c.row + j];
        if (j >= n) {
          ASSERT_EQ(c.memory[i * c.row + j], old) << "seed " << seed << ", between the rows";
          continue;
        }
        double sum = 0.0, size = 1.0;
        for (int64_t q = 0; q < k; ++q) {
          const double product = static_cast<double>(a.at(i, q)) * b.at(q, j);
          sum += product;
          size += std::abs(product);
        }
        const double expected = alpha * sum + (adds ? old : 0.0);
        ASSERT_NEAR(c.memory[i * c.row + j], expected, 1e-6 * size)
            << "seed " << seed << ": " << m << " x " << n << " x " << k << ", at " << i << ", "
            << j;
      }
    }
  }
}

TEST(Kernels, MatrixProductsInSeveralPartsOfTheInputs) {
  // Rows that have to be laid out, so many that they are in parts of fewer inputs; the last tile
  // takes some of the one before.
  constexpr int64_t kRows = 9001, kColumns = 20, kInputs = 1000;
  Random random(1);
  Guarded a(kInputs * kRows, random), b(kInputs * kColumns, random), c(kRows * kColumns, random);
  kernels::run(
      {kRows, kColumns, kInputs, a.data(), 1, kRows, b.data(), kColumns, 1, c.data(), kColumns},
      in_parts);
  c.expect_untouched();
  for (int64_t i = 0; i < kRows; i += 100) {
    for (int64_t j = 0; j < kColumns; ++j) {
      double sum = 0.0;
      for (int64_t q = 0; q < kInputs; ++q) {
        sum += static_cast<double>(a[q * kRows + i]) * b[q * kColumns + j];
      }
      ASSERT_NEAR(c[i * kColumns + j], sum, 2e-4);
    }
  }
}

TEST(Kernels, NothingTimesNothingIsZero) {
  float c[6] = {1, 2, 3, 4, 5, 6};
  const float unused = 0.0F;
  kernels::run({2, 3, 0, &unused, 0, 1, &unused, 3, 1, c, 3}, at_once);
  for (const float each : c) EXPECT_EQ(each, 0.0F);
}

/// The same computation one element at a time, in the same order of roundings.
template <typename T>
void expect_masked_forward(const kernels::MaskedForward<T>& pass, const std::vector<T>& x,
                           uint64_t seed) {
  for (int64_t i = 0; i < pass.numel; ++i) {
    const auto place = static_cast<uint64_t>(pass.first + i);
    const uint64_t key = detail::mix(pass.key, place / 64 * 64 >> 32);
    uint32_t random = static_cast<uint32_t>(place) + static_cast<uint32_t>(key);
    random ^= random >> 17;
    random *= 0xED5AD4BBU;
    random ^= random >> 11;
    random *= 0xAC4C1B51U;
    random ^= static_cast<uint32_t>(key >> 32);
    random ^= random >> 15;
    random *= 0x31848BABU;
    random ^= random >> 14;
    T z = x[static_cast<size_t>(i)];
    if (pass.bias != nullptr) z += pass.bias[(pass.first + i) % pass.columns];
    bool keep = !pass.drops || random >= pass.drop_below;
    if (pass.relu) keep = keep && !(z <= T(0));
    const T expected = keep ? z * pass.scale : T(0);
    ASSERT_TRUE(pass.out[i] == expected || (std::isnan(expected) && std::isnan(pass.out[i])))
        << "seed " << seed << ", at " << i << ": " << pass.out[i] << ", expected " << expected;
    if (pass.mask != nullptr) {
      ASSERT_EQ((pass.mask[i / 64] >> (i % 64)) & 1U, keep ? 1U : 0U) << "seed " << seed;
    }
  }
}

template <typename T>
void test_masks() {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    const int64_t numel = random.integer(1, 1000), columns = random.integer(1, 100);
    std::vector<T> x(static_cast<size_t>(numel));
    for (T& each : x) each = static_cast<T>(random.real(-1.0, 1.0));
    if (numel > 3) {
      x[0] = std::numeric_limits<T>::quiet_NaN();
      x[1] = std::numeric_limits<T>::infinity();
      x[2] = T(-0.0);
    }
    std::vector<T> bias(static_cast<size_t>(columns + kernels::kWordBits));
    for (size_t i = 0; i < bias.size(); ++i) {
      const auto whole = static_cast<size_t>(columns);
      bias[i] = i < whole ? static_cast<T>(random.real(-0.5, 0.5)) : bias[i - whole];
    }
    std::vector<T> out = x;
    std::vector<uint64_t> mask(static_cast<size_t>((numel + 63) / 64));
    kernels::MaskedForward<T> pass{};
    pass.x = random.chance(0.5) ? out.data() : x.data();  // in place, or not
    pass.out = out.data();
    pass.numel = numel;
    pass.first = 64 * random.integer(0, 1LL << 30);
    pass.bias = random.chance(0.6) ? bias.data() : nullptr;
    pass.columns = columns;
    pass.relu = random.chance(0.5);
    pass.drops = random.chance(0.5);
    pass.key = static_cast<uint64_t>(random.integer(0, std::numeric_limits<int64_t>::max()));
    pass.drop_below = static_cast<uint32_t>(random.integer(0, (1LL << 32) - 1));
    pass.scale = static_cast<T>(random.real(1.0, 3.0));
    pass.mask = random.chance(0.9) ? mask.data() : nullptr;
    const auto words = static_cast<int64_t>(mask.size()), middle = words / 2;
    kernels::run(pass, 0, middle);
    kernels::run(pass, middle, words);
    expect_masked_forward(pass, x, seed);
    if (pass.mask == nullptr) continue;
    if (numel % 64 != 0) {
      ASSERT_EQ(mask.back() >> (numel % 64), 0U) << "behind the end";
    }
    std::vector<T> back(x.size());
    kernels::run(kernels::MaskedApply<T>{x.data(), back.data(), numel, mask.data(), pass.scale}, 0,
                 words);
    for (size_t i = 0; i < x.size(); ++i) {
      const bool keep = ((mask[i / 64] >> (i % 64)) & 1U) != 0;
      const T expected = keep ? x[i] * pass.scale : T(0);
      ASSERT_TRUE(back[i] == expected || std::isnan(expected)) << "seed " << seed << ", at " << i;
    }
  }
}

TEST(Kernels, MasksFloat) { test_masks<float>(); }
TEST(Kernels, MasksDouble) { test_masks<double>(); }

TEST(Kernels, Gelu) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Random random(seed);
    const int64_t numel = random.integer(1, 500), columns = random.integer(1, 90);
    const bool has_bias = random.chance(0.5);
    const int64_t rows = (numel + columns - 1) / columns;
    std::vector<float> x(static_cast<size_t>(numel)), bias(static_cast<size_t>(columns));
    for (float& each : x) each = static_cast<float>(random.real(-9.0, 9.0));
    for (float& each : bias) each = static_cast<float>(random.real(-1.0, 1.0));
    std::vector<float> out(x.size()), slope(x.size());
    kernels::run(kernels::Gelu{x.data(), numel, columns, has_bias ? bias.data() : nullptr,
                               out.data(), slope.data()},
                 0, rows);
    for (size_t i = 0; i < x.size(); ++i) {
      const double z = static_cast<double>(x[i]) + (has_bias ? bias[i % bias.size()] : 0.0F);
      const double phi = 0.5 * std::erfc(-z / std::sqrt(2.0));
      const double density = std::exp(-0.5 * z * z) / std::sqrt(2.0 * std::acos(-1.0));
      ASSERT_NEAR(out[i], z * phi, 2e-6) << z;
      ASSERT_NEAR(slope[i], phi + z * density, 2e-6) << z;
    }
  }
  const float odd[2] = {std::numeric_limits<float>::quiet_NaN(), 60.0F};
  float out[2];
  kernels::run(kernels::Gelu{odd, 2, 2, nullptr, out, nullptr}, 0, 1);
  EXPECT_TRUE(std::isnan(out[0]));
  EXPECT_EQ(out[1], 60.0F);
}

TEST(Kernels, SoftmaxOfRows) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const int64_t classes = random.integer(1, 256);
    const double spread = random.pick(std::vector<double>{0.1, 3.0, 80.0});
    const double factor = random.pick(std::vector<double>{1.0, 0.25, 3.0});
    Guarded logits(classes, random), probabilities(classes, random);
    for (int64_t c = 0; c < classes; ++c) logits.data()[c] *= static_cast<float>(spread);
    const auto found = kernels::row_softmax(logits.data(), probabilities.data(), classes,
                                            static_cast<float>(factor));
    probabilities.expect_untouched();
    double largest = logits[0], sum = 0.0;
    for (int64_t c = 0; c < classes; ++c) largest = std::max<double>(largest, logits[c]);
    for (int64_t c = 0; c < classes; ++c) sum += std::exp(factor * (logits[c] - largest));
    ASSERT_EQ(found.largest, largest);
    ASSERT_NEAR(found.rest, std::log(sum), 2e-6 * (1.0 + std::log(sum)));
    for (int64_t c = 0; c < classes; ++c) {
      const double expected = std::exp(factor * (logits[c] - largest)) / sum;
      // The exponent is rounded in float32.
      ASSERT_NEAR(probabilities[c], expected, 1e-6 + 1e-7 * factor * spread)
          << "seed " << seed << ", class " << c;
    }
  }
}

TEST(Kernels, SoftmaxOfWhatIsNotFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> logits(20, 0.5F), probabilities(20);
  logits[3] = -kInfinity;
  EXPECT_NEAR(kernels::row_softmax(logits.data(), probabilities.data(), 20, 1.0F).rest,
              std::log(19.0), 1e-6);
  EXPECT_NEAR(probabilities[3], 0.0F, 1e-30F);
  logits[18] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(kernels::row_softmax(logits.data(), probabilities.data(), 20, 1.0F).rest));
}

TEST(Kernels, SoftmaxOfRowsThatSeeMoreAndMore) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    const int64_t rows = random.integer(1, 9), more = random.integer(0, 1);
    const int64_t seen = random.integer(1, 70), least = seen + more * (rows - 1);
    const int64_t columns = least + (random.chance(0.5) ? 0 : random.integer(1, 40));
    Guarded x(rows * columns, random);
    std::vector<float> expected(static_cast<size_t>(rows * columns), 0.0F);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t own = seen + i * more;
      kernels::row_softmax(x.data() + i * columns, expected.data() + i * columns, own, 0.5F);
      // What a row does not see counts for nothing, whatever it is.
      std::fill(x.data() + i * columns + own, x.data() + (i + 1) * columns,
                std::numeric_limits<float>::quiet_NaN());
    }
    kernels::run(kernels::SoftmaxRows{rows, columns, seen, more, 0.5F, x.data()});
    x.expect_untouched();
    for (int64_t i = 0; i < rows * columns; ++i) {
      ASSERT_EQ(x[i], expected[static_cast<size_t>(i)]) << "seed " << seed << ", element " << i;
    }
  }
}

TEST(Kernels, ScaleRows) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    Random random(seed);
    const int64_t rows = random.integer(1, 9), columns = random.integer(1, 70);
    Guarded x(rows * columns, random), scale(columns, random), shift(columns, random);
    Guarded out(rows * columns, random);
    kernels::run(
        kernels::ScaleRows{rows, columns, x.data(), scale.data(), shift.data(), out.data()});
    out.expect_untouched();
    for (int64_t i = 0; i < rows * columns; ++i) {
      const double expected = static_cast<double>(scale[i % columns]) * x[i] + shift[i % columns];
      ASSERT_NEAR(out[i], expected, 2e-7);
    }
  }
}

}  // namespace
}  // namespace nsn::test
