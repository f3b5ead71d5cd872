#include "packed_weight.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <c10/util/irange.h>

#include <algorithm>

#include "lanes.h"
#include "vectorized.h"

namespace nsn::detail {

namespace {

/// Features of one vector, and vectors of one panel. 8 rows of 2 vectors are 16 sums in registers,
/// which is enough to keep two units of multiply-adds busy, and leaves room for the operands.
constexpr int64_t kLanes = 16, kVectors = 2, kPanel = kLanes * kVectors;
constexpr int64_t kRows = 8;
/// Rows that are multiplied with one panel before the next one: they and the panel fit into L2.
constexpr int64_t kBlockBytes = int64_t{1} << 18;
/// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kLeastWork = int64_t{1} << 16;

// Extensions of GCC and Clang: compiled for AVX-512, AVX2 and less alike. The unaligned form is how
// it is loaded and stored.
using Vector = float __attribute__((vector_size(kLanes * sizeof(float))));
using Unaligned =
    float __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float))));

// Vectors are passed by functions that are compiled into their callers alone, never by a call.
#pragma GCC diagnostic ignored "-Wpsabi"

NSN_INLINE Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }

NSN_INLINE void store(float* to, const Vector& value, int64_t count) {
  if (count >= kLanes) {
    *reinterpret_cast<Unaligned*>(to) = value;
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = value[i];
  }
}

/// The leading `count` elements; what lies behind them is not read.
NSN_INLINE Vector load(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vector result{};
  for (int64_t i = 0; i < count; ++i) result[i] = from[i];
  return result;
}

struct Product {
  const float* x;
  int64_t rows, row_stride, in;
  const float* panels;
  int64_t out;
  ProductEpilogue epilogue;
  float* y;

  /// `rows` rows times one panel. Several sums for each element, over every `sums`-th input, where
  /// few rows would leave the units waiting for the sum before.
  template <int64_t vectors, int64_t rows, int64_t sums>
  NSN_INLINE void tile(int64_t row, int64_t panel) const {
    constexpr int64_t width = vectors * kLanes;
    const float* from = x + row * row_stride;
    const float* weights = panels + panel * kPanel * in;
    Vector sum[sums][rows][vectors] = {};
    int64_t k = 0;
    for (; k + sums <= in; k += sums) {
#pragma GCC unroll 4
      for (int64_t s = 0; s < sums; ++s) add(sum[s], from + k + s, weights + (k + s) * width);
    }
    for (; k < in; ++k) add(sum[0], from + k, weights + k * width);

    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t feature = panel * kPanel + v * kLanes, count = out - feature;
      Vector scale{}, bias{};
      if (epilogue.scale != nullptr) scale = load(epilogue.scale + feature, count);
      if (epilogue.bias != nullptr) bias = load(epilogue.bias + feature, count);
      for (int64_t r = 0; r < rows; ++r) {
        Vector z = sum[0][r][v];
        for (int64_t s = 1; s < sums; ++s) z += sum[s][r][v];
        if (epilogue.scale != nullptr) z *= scale;
        if (epilogue.bias != nullptr) z += bias;
        // "not <= 0" and not "> 0": NaN passes, as through torch's ReLU.
        if (epilogue.relu) z = z <= 0.0F ? Vector{} : z;
        store(y + (row + r) * out + feature, z, count);
      }
    }
  }

  template <size_t rows, size_t vectors>
  NSN_INLINE void add(Vector (&sum)[rows][vectors], const float* from, const float* weights) const {
    Vector w[vectors];
#pragma GCC unroll 2
    for (size_t v = 0; v < vectors; ++v) w[v] = load(weights + v * kLanes);
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; ++r) {
      const float factor = from[static_cast<int64_t>(r) * row_stride];
#pragma GCC unroll 2
      for (size_t v = 0; v < vectors; ++v) sum[r][v] += factor * w[v];
    }
  }

  template <int64_t vectors>
  NSN_INLINE void block(int64_t first, int64_t end, int64_t panel) const {
    for (; first + kRows <= end; first += kRows) tile<vectors, kRows, 1>(first, panel);
    switch (end - first) {
      case 1:
        return tile<vectors, 1, 4>(first, panel);
      case 2:
        return tile<vectors, 2, 2>(first, panel);
      case 3:
        return tile<vectors, 3, 2>(first, panel);
      case 4:
        return tile<vectors, 4, 1>(first, panel);
      case 5:
        return tile<vectors, 5, 1>(first, panel);
      case 6:
        return tile<vectors, 6, 1>(first, panel);
      case 7:
        return tile<vectors, 7, 1>(first, panel);
      default:
        return;
    }
  }
};

/// The tasks [begin, end), a task being one block of rows times one panel.
NSN_VECTORIZED void run(const Product& product, int64_t block_rows, int64_t panels, int64_t begin,
                        int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task / panels * block_rows, panel = task % panels;
    const int64_t end_row = std::min(first + block_rows, product.rows);
    if (product.out - panel * kPanel > kLanes) {
      product.block<kVectors>(first, end_row, panel);
    } else {
      product.block<1>(first, end_row, panel);
    }
  }
}

}  // namespace

PackedWeight::PackedWeight(const at::Tensor& weight) : out_(weight.size(0)), in_(weight.size(1)) {
  panels_ = at::zeros({(out_ + kLanes - 1) / kLanes * kLanes * in_}, weight.options());
  for (int64_t first = 0; first < out_; first += kPanel) {
    const int64_t count = std::min(kPanel, out_ - first), width = count > kLanes ? kPanel : kLanes;
    panels_.narrow(0, first * in_, in_ * width)
        .view({in_, width})
        .narrow(1, 0, count)
        .copy_(weight.narrow(0, first, count).t());
  }
}

at::Tensor PackedWeight::multiply(const at::Tensor& x, const ProductEpilogue& epilogue) const {
  const at::Tensor rows = as_rows(x);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = out_;
  at::Tensor y = at::detail::empty_cpu(shape, at::kFloat);
  const Product product{
      rows.const_data_ptr<float>(),    rows.size(0), rows.stride(0), in_,
      panels_.const_data_ptr<float>(), out_,         epilogue,       y.mutable_data_ptr<float>()};
  const int64_t fitting = kBlockBytes / (static_cast<int64_t>(sizeof(float)) * in_);
  const int64_t block_rows = std::max(kRows, fitting / kRows * kRows);
  const int64_t panels = (out_ + kPanel - 1) / kPanel;
  const int64_t tasks = (product.rows + block_rows - 1) / block_rows * panels;
  const int64_t work = std::min(block_rows, product.rows) * in_ * kPanel;
  at::parallel_for(
      0, tasks, std::max<int64_t>(1, kLeastWork / std::max<int64_t>(1, work)),
      [&](int64_t begin, int64_t end) { run(product, block_rows, panels, begin, end); });
  return y;
}

}  // namespace nsn::detail
