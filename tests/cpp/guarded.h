#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "support.h"

namespace nsn::test {

/// Random numbers with a guard on both sides that is not to be touched.
struct Guarded {
  static constexpr size_t kGuard = 64;

  Guarded(int64_t count, Random& random) : values(static_cast<size_t>(count) + 2 * kGuard) {
    for (float& each : values) each = static_cast<float>(random.real(-1.0, 1.0));
    std::fill_n(values.begin(), kGuard, 1e30F);
    std::fill(values.end() - kGuard, values.end(), 1e30F);
  }
  float* data() { return values.data() + kGuard; }
  float operator[](int64_t i) const { return values[kGuard + static_cast<size_t>(i)]; }
  void expect_untouched() const {
    for (size_t i = 0; i < kGuard; ++i) {
      ASSERT_EQ(values[i], 1e30F);
      ASSERT_EQ(values[values.size() - 1 - i], 1e30F);
    }
  }

  std::vector<float> values;
};

}  // namespace nsn::test
