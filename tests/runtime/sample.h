#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "runtime/file.h"

namespace nsn::test {

/// Whether a session may have threads: WebAssembly has none, unless it is built for them.
#if defined(__EMSCRIPTEN__) && !defined(__EMSCRIPTEN_PTHREADS__)
inline constexpr bool kHasThreads = false;
#else
inline constexpr bool kHasThreads = true;
#endif

/// A file of random weights, without torch.
class Sample {
 public:
  /// `has_narrow`: whether weights are of other types than float32 too.
  explicit Sample(uint64_t seed, bool has_narrow = true)
      : random_(static_cast<std::mt19937::result_type>(seed)), has_narrow_(has_narrow) {}

  int64_t integer(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random_);
  }
  bool chance(double share) { return std::bernoulli_distribution(share)(random_); }
  std::vector<float> numbers(int64_t count);

  /// A weight in panels (out, in, taps), or elements of these sizes; its place.
  size_t weight(int64_t out, int64_t in, int64_t taps);
  size_t elements(int64_t a, int64_t b, int64_t c);

  /// Adds a sub-network of random kernels on its way from `inputs` elements, in some of which the
  /// sub-network uses a leading slice of a weight of others'. Steps of all kinds but calls.
  void network(const std::string& name, int64_t inputs, int64_t steps);
  /// Two layers, whose widths slice one pair of weights.
  void mlp(const std::vector<int64_t>& widths, int64_t in, int64_t out);
  /// Two convolutions, at several widths of the same weights, whose kernels have odd extents and
  /// leave the size as it is.
  void cnn(const std::vector<int64_t>& widths, const plan::Pair& pool = {1, 1},
           const plan::Pair& size = {7, 6}, const plan::Pair& kernel = {3, 3});
  /// A table, a position embedding, attention and a product.
  void transformer(const std::string& name, int64_t positions, int64_t heads, int64_t head_dim,
                   bool causal);

  /// The file, whole.
  std::string bytes();
  const runtime::File& file() const { return file_; }
  /// Of each tensor: panels as (out, in, taps).
  const std::vector<std::vector<float>>& contents() const { return contents_; }
  const std::array<int64_t, 3>& sizes(size_t tensor) const { return sizes_[tensor]; }

  runtime::File file_;

 private:
  friend class NetworkBuilder;
  std::mt19937 random_;
  bool has_narrow_;
  std::vector<std::vector<float>> contents_;
  std::vector<std::array<int64_t, 3>> sizes_;
};

/// Writes to a file; throws where that fails.
void write(const std::string& path, const std::string& bytes);

}  // namespace nsn::test
