#include "packed_weight.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

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

/// The leading `count` elements; what lies behind them is not read.
NSN_INLINE Vector load(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vector result{};
  for (int64_t i = 0; i < count; ++i) result[i] = from[i];
  return result;
}

NSN_INLINE void store(float* to, const Vector& value, int64_t count) {
  if (count >= kLanes) {
    *reinterpret_cast<Unaligned*>(to) = value;
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = value[i];
  }
}

/// The rows of a matrix.
struct MatrixRows {
  const float* x;
  int64_t stride;

  static constexpr int64_t taps() { return 1; }

  /// Where `count` rows begin.
  template <size_t count>
  NSN_INLINE void begin(int64_t first, int64_t /*tap*/, const float* (&rows)[count]) const {
    for (size_t r = 0; r < count; ++r) rows[r] = x + (first + static_cast<int64_t>(r)) * stride;
  }
};

/// The rows that a convolution multiplies: for each output position and each tap of the kernel the
/// channels of one input position, or zeros outside.
struct ConvolutionRows {
  const float* x;
  const float* zeros;
  int64_t channels, height, width, out_height, out_width, kernel_height, kernel_width;
  PackedGeometry geometry;

  int64_t taps() const { return kernel_height * kernel_width; }

  template <size_t count>
  NSN_INLINE void begin(int64_t first, int64_t tap, const float* (&rows)[count]) const {
    const int64_t below = tap / kernel_width * geometry.dilation[0] - geometry.padding[0];
    const int64_t right = tap % kernel_width * geometry.dilation[1] - geometry.padding[1];
    int64_t column = first % out_width, line = first / out_width % out_height;
    int64_t sample = first / out_width / out_height;
    for (size_t r = 0; r < count; ++r) {
      const int64_t h = line * geometry.stride[0] + below, w = column * geometry.stride[1] + right;
      const bool inside = h >= 0 && h < height && w >= 0 && w < width;
      rows[r] = inside ? x + ((sample * height + h) * width + w) * channels : zeros;
      if (++column < out_width) continue;
      column = 0;
      if (++line < out_height) continue;
      line = 0;
      ++sample;
    }
  }
};

template <typename Rows>
struct Product {
  Rows source;
  int64_t rows, in, out;
  const float* panels;
  /// Of the packed weight, which may be larger than the slice that is used.
  int64_t packed_in, packed_out;
  ProductEpilogue epilogue;
  float* y;

  /// `count` rows times one panel. Several sums for each element, over every `sums`-th input, where
  /// few rows would leave the units waiting for the sum before.
  template <int64_t vectors, size_t count, int64_t sums>
  NSN_INLINE void tile(int64_t first, int64_t panel) const {
    const int64_t width = packed_out - panel * kPanel > kLanes ? kPanel : kLanes;
    const float* weights = panels + panel * kPanel * packed_in * source.taps();
    Vector sum[sums][count][vectors] = {};
    for (int64_t tap = 0; tap < source.taps(); ++tap, weights += packed_in * width) {
      const float* from[count];
      source.begin(first, tap, from);
      int64_t k = 0;
      for (; k + sums <= in; k += sums) {
#pragma GCC unroll 4
        for (int64_t s = 0; s < sums; ++s) add(sum[s], from, k + s, weights + (k + s) * width);
      }
      for (; k < in; ++k) add(sum[0], from, k, weights + k * width);
    }
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t feature = panel * kPanel + v * kLanes, features = out - feature;
      Vector scale{}, bias{};
      if (epilogue.scale != nullptr) scale = load(epilogue.scale + feature, features);
      if (epilogue.bias != nullptr) bias = load(epilogue.bias + feature, features);
      for (size_t r = 0; r < count; ++r) {
        Vector z = sum[0][r][v];
        for (int64_t s = 1; s < sums; ++s) z += sum[s][r][v];
        if (epilogue.scale != nullptr) z *= scale;
        if (epilogue.bias != nullptr) z += bias;
        // "not <= 0" and not "> 0": NaN passes, as through torch's ReLU.
        if (epilogue.relu) z = z <= 0.0F ? Vector{} : z;
        store(y + (first + static_cast<int64_t>(r)) * out + feature, z, features);
      }
    }
  }

  template <size_t count, size_t vectors>
  NSN_INLINE void add(Vector (&sum)[count][vectors], const float* const (&from)[count], int64_t k,
                      const float* weights) const {
    Vector w[vectors];
#pragma GCC unroll 2
    for (size_t v = 0; v < vectors; ++v) w[v] = load(weights + v * kLanes);
#pragma GCC unroll 8
    for (size_t r = 0; r < count; ++r) {
      const float factor = from[r][k];
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

  /// The tasks [begin, end), a task being one block of rows times one panel.
  NSN_INLINE void run(int64_t block_rows, int64_t begin, int64_t end) const {
    const int64_t all_panels = (out + kPanel - 1) / kPanel;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / all_panels * block_rows, panel = task % all_panels;
      const int64_t end_row = std::min(first + block_rows, rows);
      if (out - panel * kPanel > kLanes) {
        block<kVectors>(first, end_row, panel);
      } else {
        block<1>(first, end_row, panel);
      }
    }
  }
};

NSN_VECTORIZED void run(const Product<MatrixRows>& product, int64_t block_rows, int64_t begin,
                        int64_t end) {
  product.run(block_rows, begin, end);
}

NSN_VECTORIZED void run(const Product<ConvolutionRows>& product, int64_t block_rows, int64_t begin,
                        int64_t end) {
  product.run(block_rows, begin, end);
}

/// All of it, spread over threads.
template <typename Rows>
void compute(const Product<Rows>& product) {
  const int64_t inner = product.in * product.source.taps();
  // Blocks of equal size, so that threads get equal shares.
  const int64_t most =
      std::max(kRows, kBlockBytes / (static_cast<int64_t>(sizeof(float)) * inner) / kRows * kRows);
  const int64_t blocks = std::max<int64_t>(1, (product.rows + most - 1) / most);
  const int64_t share = (product.rows + blocks - 1) / blocks;
  const int64_t block_rows = std::max(kRows, (share + kRows - 1) / kRows * kRows);
  const int64_t panels = (product.out + kPanel - 1) / kPanel;
  const int64_t tasks = (product.rows + block_rows - 1) / block_rows * panels;
  const int64_t work = std::max<int64_t>(1, std::min(block_rows, product.rows) * inner * kPanel);
  at::parallel_for(0, tasks, std::max<int64_t>(1, kLeastWork / work),
                   [&](int64_t begin, int64_t end) { run(product, block_rows, begin, end); });
}

}  // namespace

PackedWeight::PackedWeight(const at::Tensor& weight) : out_(weight.size(0)), in_(weight.size(1)) {
  at::Tensor taps = weight.unsqueeze(1);  // (out, taps, in)
  if (weight.dim() == 4) {
    height_ = weight.size(2);
    width_ = weight.size(3);
    taps = weight.permute({0, 2, 3, 1}).reshape({out_, height_ * width_, in_});
  }
  const int64_t inner = in_ * height_ * width_;
  panels_ = at::zeros({(out_ + kLanes - 1) / kLanes * kLanes * inner}, weight.options());
  for (int64_t first = 0; first < out_; first += kPanel) {
    const int64_t count = std::min(kPanel, out_ - first), width = count > kLanes ? kPanel : kLanes;
    panels_.narrow(0, first * inner, inner * width)
        .view({height_ * width_, in_, width})
        .narrow(2, 0, count)
        .copy_(taps.narrow(0, first, count).permute({1, 2, 0}));
  }
}

at::Tensor PackedWeight::multiply(const at::Tensor& x, int64_t out,
                                  const ProductEpilogue& epilogue) const {
  const at::Tensor rows = as_rows(x);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = out;
  at::Tensor y = at::detail::empty_cpu(shape, at::kFloat);
  compute(Product<MatrixRows>{{rows.const_data_ptr<float>(), rows.stride(0)},
                              rows.size(0),
                              rows.size(1),
                              out,
                              panels_.const_data_ptr<float>(),
                              in_,
                              out_,
                              epilogue,
                              y.mutable_data_ptr<float>()});
  return y;
}

at::Tensor PackedWeight::convolve(const at::Tensor& x, int64_t out, const PackedGeometry& geometry,
                                  const ProductEpilogue& epilogue) const {
  const at::Tensor last = x.permute({0, 2, 3, 1}).contiguous();  // (B, H, W, in)
  const auto extent = [&](int64_t size, int64_t kernel, size_t d) {
    const int64_t reach = geometry.dilation[d] * (kernel - 1) + 1;
    return (size + 2 * geometry.padding[d] - reach) / geometry.stride[d] + 1;
  };
  const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t out_height = extent(height, height_, 0), out_width = extent(width, width_, 1);
  const std::vector<float> zeros(static_cast<size_t>(channels), 0.0F);
  at::Tensor y = at::detail::empty_cpu({batch, out_height, out_width, out}, at::kFloat);
  compute(Product<ConvolutionRows>{{last.const_data_ptr<float>(), zeros.data(), channels, height,
                                    width, out_height, out_width, height_, width_, geometry},
                                   batch * out_height * out_width,
                                   channels,
                                   out,
                                   panels_.const_data_ptr<float>(),
                                   in_,
                                   out_,
                                   epilogue,
                                   y.mutable_data_ptr<float>()});
  return y.permute({0, 3, 1, 2});
}

}  // namespace nsn::detail
