// How many multiply-adds of float32 a thread computes at most: what products are held against,
// where inference.py asks how much faster anything could be.

#include <nsn/runtime/model.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace {

constexpr size_t kSums = 12;

/// So many rounds of sums, each of which waits for itself alone; the compiler joins * and +.
template <typename Vector>
[[gnu::always_inline]] inline void multiply_and_add(int64_t rounds, float* out) {
  Vector sums[kSums], factor, more;
  for (size_t i = 0; i < sizeof(Vector) / sizeof(float); ++i) {
    factor[i] = 0.5F;
    more[i] = 1e-30F;  // small, and never so small that it takes longer
    // No two are the same, of which the compiler would make one.
    for (size_t s = 0; s < kSums; ++s) sums[s][i] = static_cast<float>(s);
  }
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (Vector& sum : sums) sum = sum * factor + more;
  }
  for (size_t i = 0; i < sizeof(Vector) / sizeof(float); ++i) {
    for (const Vector& sum : sums) out[i] += sum[i];
  }
}

using V16 [[gnu::vector_size(64)]] = float;
using V8 [[gnu::vector_size(32)]] = float;
using V4 [[gnu::vector_size(16)]] = float;

#if defined(__x86_64__)
[[gnu::target("avx512f,fma")]] void sixteen(int64_t rounds, float* out) {
  multiply_and_add<V16>(rounds, out);
}
[[gnu::target("avx2,fma")]] void eight(int64_t rounds, float* out) {
  multiply_and_add<V8>(rounds, out);
}
#endif
void four(int64_t rounds, float* out) { multiply_and_add<V4>(rounds, out); }

}  // namespace

/// Multiply-adds a second of vectors of so many lanes (16, 8 or 4), the most of parts of a
/// millisecond or so.
extern "C" NSN_API double nsn_peak(int lanes, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kRounds = 200'000;
  auto run = &four;
#if defined(__x86_64__)
  if (lanes == 16) run = &sixteen;
  if (lanes == 8) run = &eight;
#endif
  float out[16] = {};
  double most = 0.0;
  for (const auto end = Clock::now() + std::chrono::duration<double>(seconds);
       Clock::now() < end;) {
    const auto start = Clock::now();
    run(kRounds, out);
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    most = std::max(most, static_cast<double>(kSums * kRounds) * lanes / took);
  }
  return out[0] > 0.5F ? 0.0 : most;
}
