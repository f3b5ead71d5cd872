#include "kernels/product.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <type_traits>

#include "kernels/level.h"

#ifndef NSN_PRODUCT_ONCE
#define NSN_PRODUCT_ONCE
namespace nsn::kernels {
namespace {

/// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kLeastWork = int64_t{1} << 16;

/// Memory of this thread on a cache line, kept from call to call; one for each `use`.
template <int use>
float* memory_of_thread(int64_t elements) {
  constexpr size_t kLine = 64;
  thread_local std::unique_ptr<float[]> memory;
  thread_local size_t size = 0;
  const size_t needed = static_cast<size_t>(elements) + kLine / sizeof(float);
  if (size < needed) {
    memory = std::make_unique_for_overwrite<float[]>(needed);
    size = needed;
  }
  const auto begin = reinterpret_cast<uintptr_t>(memory.get());
  return memory.get() + (kLine - begin % kLine) % kLine / sizeof(float);
}

}  // namespace
}  // namespace nsn::kernels
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/product.cpp"
#include "kernels/per_level.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
constexpr size_t kLanes = HWY_MAX_BYTES >= 64 ? 16 : HWY_MAX_BYTES / sizeof(float);

/// Registers for a tile's sums and for its weights; one or two more hold a factor.
constexpr size_t kRegisters = (HWY_MAX_BYTES >= 64 || HWY_ARCH_ARM_A64 ? 32 : 16) - 2;
/// Rows of a tile, where there are enough.
constexpr size_t kRows = HWY_MAX_BYTES >= 64 ? 8 : 6;
/// Sums that run side by side at least, so that none waits for the one before.
constexpr size_t kLeastSums = 8;

/// Vectors side by side of a tile of so many rows: a whole panel for few.
constexpr size_t vectors_for(size_t rows) {
  size_t vectors = kPanel / kLanes;
  while (vectors * (rows + 1) > kRegisters) vectors /= 2;
  return vectors;
}

/// Of a tile of few rows each element has several sums, over every so many-th input.
constexpr size_t sums_for(size_t rows, size_t vectors) {
  size_t sums = 1;
  while (sums < 4 && sums * rows * vectors < kLeastSums &&
         2 * sums * rows * vectors + vectors <= kRegisters) {
    sums *= 2;
  }
  return sums;
}

/// The first `count` of a vector's elements; no more is read.
HWY_INLINE V load_part(D d, const float* from, int64_t count) {
  if (count >= static_cast<int64_t>(kLanes)) return hn::LoadU(d, from);
  HWY_ALIGN float part[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return hn::Load(d, part);
}

HWY_INLINE void store_part(D d, V value, float* to, int64_t count) {
  if (count >= static_cast<int64_t>(kLanes)) {
    hn::StoreU(value, d, to);
    return;
  }
  HWY_ALIGN float part[kLanes];
  hn::Store(value, d, part);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

/// Where `rows` rows begin, from the one at `first` on.
template <size_t rows>
HWY_INLINE void begin_rows(const Product& p, int64_t first, int64_t tap,
                           const float* (&from)[rows]) {
  if (p.positions == nullptr) {
    for (size_t r = 0; r < rows; ++r) {
      from[r] = p.x + (first + static_cast<int64_t>(r)) * p.x_stride;
    }
    return;
  }
  const Positions& at = *p.positions;
  const int64_t below = tap / at.kernel_width * at.dilation[0] - at.padding[0];
  const int64_t right = tap % at.kernel_width * at.dilation[1] - at.padding[1];
  int64_t column = first % at.out_width, line = first / at.out_width % at.out_height;
  int64_t sample = first / at.out_width / at.out_height;
  for (size_t r = 0; r < rows; ++r) {
    const int64_t h = line * at.stride[0] + below, w = column * at.stride[1] + right;
    const bool inside = h >= 0 && h < at.height && w >= 0 && w < at.width;
    from[r] = inside ? p.x + ((sample * at.height + h) * at.width + w) * p.in : at.zeros;
    if (++column < at.out_width) continue;
    column = 0;
    if (++line < at.out_height) continue;
    line = 0;
    ++sample;
  }
}

/// Adds rows times weights to `total`, over `count` inputs: `step` elements from one to the next in
/// a row, `width` in the weights.
template <size_t rows, size_t vectors>
HWY_INLINE void multiply(V (&total)[rows][vectors], const float* const (&from)[rows], int64_t step,
                         const float* weights, int64_t width, int64_t count) {
  const D d;
  constexpr size_t kSums = sums_for(rows, vectors);
  V sum[kSums][rows][vectors];
  HWY_UNROLL(8)
  for (size_t s = 0; s < kSums; ++s) {
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      HWY_UNROLL(8)
      for (size_t v = 0; v < vectors; ++v) sum[s][r][v] = s == 0 ? total[r][v] : hn::Zero(d);
    }
  }
  int64_t at = 0;
  const auto add = [&](V(&to)[rows][vectors]) HWY_ATTR {
    V w[vectors];
    HWY_UNROLL(8)
    for (size_t v = 0; v < vectors; ++v) w[v] = hn::LoadU(d, weights + v * kLanes);
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      const V factor = hn::Set(d, from[r][at]);
      HWY_UNROLL(8)
      for (size_t v = 0; v < vectors; ++v) to[r][v] = hn::MulAdd(factor, w[v], to[r][v]);
    }
    at += step;
    weights += width;
  };
  int64_t k = 0;
  for (; k + static_cast<int64_t>(kSums) <= count; k += kSums) {
    HWY_UNROLL(4)
    for (size_t s = 0; s < kSums; ++s) add(sum[s]);
  }
  if constexpr (kSums > 1) {
    for (; k < count; ++k) add(sum[0]);
  }
  HWY_UNROLL(8)
  for (size_t r = 0; r < rows; ++r) {
    HWY_UNROLL(8)
    for (size_t v = 0; v < vectors; ++v) {
      total[r][v] = sum[0][r][v];
      HWY_UNROLL(4)
      for (size_t s = 1; s < kSums; ++s) total[r][v] = hn::Add(total[r][v], sum[s][r][v]);
    }
  }
}

/// `rows` rows times `vectors` vectors of output features, from `feature` on.
template <size_t rows, size_t vectors>
HWY_INLINE void tile(const Product& p, int64_t first, int64_t feature, const float* weights,
                     int64_t width, int64_t taps) {
  const D d;
  V sum[rows][vectors];
  HWY_UNROLL(8)
  for (size_t r = 0; r < rows; ++r) {
    HWY_UNROLL(8)
    for (size_t v = 0; v < vectors; ++v) sum[r][v] = hn::Zero(d);
  }
  for (int64_t tap = 0; tap < taps; ++tap, weights += p.packed_in * width) {
    const float* from[rows];
    begin_rows(p, first, tap, from);
    multiply(sum, from, /*step=*/1, weights, width, p.in);
  }
  HWY_UNROLL(8)
  for (size_t v = 0; v < vectors; ++v) {
    const int64_t at = feature + static_cast<int64_t>(v * kLanes), features = p.out - at;
    if (features <= 0) break;
    const auto& [scale, bias, relu] = p.epilogue;
    const V factor = scale == nullptr ? hn::Zero(d) : load_part(d, scale + at, features);
    const V shift = bias == nullptr ? hn::Zero(d) : load_part(d, bias + at, features);
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      V z = sum[r][v];
      if (scale != nullptr) z = hn::Mul(z, factor);
      if (bias != nullptr) z = hn::Add(z, shift);
      // "not <= 0" and not "> 0": NaN passes, as through torch's ReLU.
      if (relu) z = hn::IfThenZeroElse(hn::Le(z, hn::Zero(d)), z);
      store_part(d, z, p.y + (first + static_cast<int64_t>(r)) * p.y_stride + at, features);
    }
  }
}

/// The tiles side by side that `rows` rows times one panel of `width` are cut into, as many as the
/// registers ask for: calls `each(vectors, at)` for those that begin before `used`.
template <size_t rows, typename Each>
HWY_INLINE void over_panel(int64_t width, int64_t used, const Each& each) {
  constexpr size_t kVectors = vectors_for(rows);
  constexpr size_t kOfHalf = std::min<size_t>(kVectors, kHalfPanel / kLanes);
  constexpr int64_t kWhole = kVectors * kLanes, kHalf = kOfHalf * kLanes;
  int64_t at = 0;
  for (; at + kHalf < used && at + kWhole <= width; at += kWhole) {
    each(std::integral_constant<size_t, kVectors>(), at);
  }
  for (; at < used; at += kHalf) each(std::integral_constant<size_t, kOfHalf>(), at);
}

/// Calls `each(rows, first)` for tiles of rows, the last one of those that are left.
template <size_t most, typename Each>
HWY_INLINE void remaining_rows(int64_t first, int64_t count, const Each& each) {
  if constexpr (most > 0) {
    if (count == static_cast<int64_t>(most)) {
      each(std::integral_constant<size_t, most>(), first);
    } else {
      remaining_rows<most - 1>(first, count, each);
    }
  }
}

template <typename Each>
HWY_INLINE void over_rows(int64_t first, int64_t end, const Each& each) {
  constexpr auto kStep = static_cast<int64_t>(kRows);
  for (; first + kStep <= end; first += kStep) each(std::integral_constant<size_t, kRows>(), first);
  remaining_rows<kRows - 1>(first, end - first, each);
}

/// How a product is cut into tasks, each a block of rows times one panel.
struct Tasks {
  int64_t block_rows, blocks, panels;
  /// So many of them are worth a thread.
  int64_t grain;

  Tasks(int64_t rows, int64_t columns, int64_t inner, int64_t most_rows)
      : panels((columns + kPanel - 1) / kPanel) {
    constexpr auto kStep = static_cast<int64_t>(kRows);
    const int64_t most = std::max(kStep, most_rows / kStep * kStep);
    // Blocks of equal size, so that threads get equal shares.
    const int64_t least = std::max<int64_t>(1, (rows + most - 1) / most);
    const int64_t share = (rows + least - 1) / least;
    block_rows = std::max(kStep, (share + kStep - 1) / kStep * kStep);
    blocks = (rows + block_rows - 1) / block_rows;
    const int64_t work = std::min(block_rows, rows) * inner * kPanel;
    grain = std::max<int64_t>(1, kLeastWork / std::max<int64_t>(1, work));
  }
};

void run_packed(const Product& p, const ParallelFor& parallel_for) {
  // The rows of a block and a panel fit into a cache of the second level.
  constexpr int64_t kBlockBytes = int64_t{1} << 18;
  const int64_t taps =
      p.positions == nullptr ? 1 : p.positions->kernel_height * p.positions->kernel_width;
  const int64_t row_bytes = static_cast<int64_t>(sizeof(float)) * p.in * taps;
  const Tasks tasks(p.rows, p.out, p.in * taps, kBlockBytes / std::max<int64_t>(1, row_bytes));
  parallel_for(tasks.blocks * tasks.panels, tasks.grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t feature = task % tasks.panels * kPanel;
      const int64_t first = task / tasks.panels * tasks.block_rows;
      const int64_t width = panel_width(p.packed_out - feature);
      const float* weights = p.panels + feature * p.packed_in * taps;
      const int64_t used = std::min(width, p.out - feature);
      const int64_t end_row = std::min(first + tasks.block_rows, p.rows);
      over_rows(first, end_row, [&](auto rows, int64_t row) HWY_ATTR {
        over_panel<rows()>(width, used, [&](auto vectors, int64_t at) HWY_ATTR {
          tile<rows(), vectors()>(p, row, feature + at, weights + at, width, taps);
        });
      });
    }
  });
}

// -------------------------------------------------------------------------------------------------
// Matrices as they lie

/// A matrix product with its roles: rows, read as they lie, times columns, laid out in panels.
/// Where it `is_turned`, rows are b's columns and columns a's rows, and what comes out is c
/// transposed.
struct Turned {
  int64_t rows, columns, k;
  const float* x;
  int64_t x_row, x_step;
  const float* w;
  int64_t w_step, w_column;
  bool is_turned;
};

/// Whether panels are used so little that laying them out does not pay, where each lies in lines.
bool reads_as_it_lies(int64_t rows) { return rows <= 2 * static_cast<int64_t>(kRows); }

/// The way that moves fewer elements before and after the product: those of the panels, those of
/// rows that do not lie in rows, and turned those of the result. One that is transposed counts as
/// four.
Turned turned(const MatrixProduct& p) {
  const auto cost = [](int64_t rows, int64_t x_step, int64_t columns, int64_t w_column) {
    const int64_t panels = w_column != 1 ? 4 : reads_as_it_lies(rows) ? 0 : 1;
    return columns * panels + (x_step == 1 ? 0 : rows);
  };
  const int64_t as_is = p.k * cost(p.m, p.a_column, p.n, p.b_column);
  const int64_t other = p.k * cost(p.n, p.b_row, p.m, p.a_row) + 4 * p.m * p.n;
  if (as_is <= other) {
    return {p.m, p.n, p.k, p.a, p.a_row, p.a_column, p.b, p.b_row, p.b_column, false};
  }
  return {p.n, p.m, p.k, p.b, p.b_column, p.b_row, p.a, p.a_column, p.a_row, true};
}

/// Lays out `columns` columns of the inputs [0, k), alpha times, as a panel of `width`.
HWY_INLINE void lay_out(const Turned& p, const float* w, int64_t k, int64_t columns, int64_t width,
                        float alpha, float* panel) {
  const hn::CappedTag<float, 4> d;
  const auto factor = hn::Set(d, alpha);
  const int64_t whole = columns / 4 * 4;
  if (columns < width) std::fill_n(panel, k * width, 0.0F);
  if (p.w_column == 1) {
    const D wide;
    const auto wide_factor = hn::Set(wide, alpha);
    for (int64_t i = 0; i < k; ++i) {
      const float* from = w + i * p.w_step;
      float* to = panel + i * width;
      int64_t j = 0;
      for (; j + static_cast<int64_t>(kLanes) <= columns; j += kLanes) {
        hn::StoreU(hn::Mul(wide_factor, hn::LoadU(wide, from + j)), wide, to + j);
      }
      for (; j < columns; ++j) to[j] = alpha * from[j];
    }
    return;
  }
  int64_t i = 0;
  if (p.w_step == 1 && hn::MaxLanes(d) == 4) {
    for (; i + 4 <= k; i += 4) {
      for (int64_t j = 0; j < whole; j += 4) {
        const float* from = w + i + j * p.w_column;
        float* to = panel + i * width + j;
        const auto r0 = hn::LoadU(d, from), r1 = hn::LoadU(d, from + p.w_column);
        const auto r2 = hn::LoadU(d, from + 2 * p.w_column);
        const auto r3 = hn::LoadU(d, from + 3 * p.w_column);
        const auto low01 = hn::InterleaveLower(d, r0, r1), low23 = hn::InterleaveLower(d, r2, r3);
        const auto up01 = hn::InterleaveUpper(d, r0, r1), up23 = hn::InterleaveUpper(d, r2, r3);
        hn::StoreU(hn::Mul(factor, hn::ConcatLowerLower(d, low23, low01)), d, to);
        hn::StoreU(hn::Mul(factor, hn::ConcatUpperUpper(d, low23, low01)), d, to + width);
        hn::StoreU(hn::Mul(factor, hn::ConcatLowerLower(d, up23, up01)), d, to + 2 * width);
        hn::StoreU(hn::Mul(factor, hn::ConcatUpperUpper(d, up23, up01)), d, to + 3 * width);
      }
      for (int64_t j = whole; j < columns; ++j) {
        for (int64_t s = i; s < i + 4; ++s) panel[s * width + j] = alpha * w[s + j * p.w_column];
      }
    }
  }
  for (; i < k; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      panel[i * width + j] = alpha * w[i * p.w_step + j * p.w_column];
    }
  }
}

/// Lays out the rows from `first` on, which do not lie in rows: for each input theirs together.
template <size_t rows>
HWY_INLINE void lay_out_rows(const Turned& t, const float* x, int64_t first, int64_t k, float* to) {
  const float* from = x + first * t.x_row;
  for (int64_t i = 0; i < k; ++i, from += t.x_step, to += rows) {
    if (t.x_row == 1) {
      std::memcpy(to, from, rows * sizeof(float));
      continue;
    }
    for (size_t r = 0; r < rows; ++r) to[r] = from[static_cast<int64_t>(r) * t.x_row];
  }
}

/// `rows` rows, which lie as given, times `vectors` vectors of a panel.
template <size_t rows, size_t vectors>
HWY_INLINE void matrix_tile(const MatrixProduct& p, const Turned& t, const float* x, int64_t x_row,
                            int64_t x_step, int64_t first, int64_t column, const float* panel,
                            int64_t width, int64_t k, bool adds) {
  const D d;
  V sum[rows][vectors];
  const float* from[rows];
  HWY_UNROLL(8)
  for (size_t r = 0; r < rows; ++r) {
    from[r] = x + static_cast<int64_t>(r) * x_row;
    HWY_UNROLL(8)
    for (size_t v = 0; v < vectors; ++v) sum[r][v] = hn::Zero(d);
  }
  multiply(sum, from, x_step, panel, width, k);
  if (t.is_turned) {
    HWY_ALIGN float turned[rows][vectors * kLanes];
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      HWY_UNROLL(8)
      for (size_t v = 0; v < vectors; ++v) hn::Store(sum[r][v], d, turned[r] + v * kLanes);
    }
    const int64_t count = std::min<int64_t>(vectors * kLanes, t.columns - column);
    for (int64_t j = 0; j < count; ++j) {
      float* to = p.c + (column + j) * p.c_row + first;
      if (adds) {
        for (size_t r = 0; r < rows; ++r) to[r] += turned[r][j];
      } else {
        for (size_t r = 0; r < rows; ++r) to[r] = turned[r][j];
      }
    }
    return;
  }
  HWY_UNROLL(8)
  for (size_t v = 0; v < vectors; ++v) {
    const int64_t at = column + static_cast<int64_t>(v * kLanes), columns = t.columns - at;
    if (columns <= 0) break;
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      float* to = p.c + (first + static_cast<int64_t>(r)) * p.c_row + at;
      store_part(d, adds ? hn::Add(sum[r][v], load_part(d, to, columns)) : sum[r][v], to, columns);
    }
  }
}

void run_matrix(const MatrixProduct& p, const ParallelFor& parallel_for) {
  const Turned t = turned(p);
  constexpr int64_t kBlockRows = 128;
  // Parts of the inputs, of equal size, of which a panel fits into a cache of the second level, and
  // all rows that are laid out into memory that a thread may keep.
  constexpr int64_t kMostInputs = 1024, kLeastInputs = 64, kMostLaid = int64_t{1} << 22;
  const bool lies_in_rows = t.x_step == 1;
  const int64_t most_inputs = lies_in_rows ? kMostInputs
                                           : std::clamp(kMostLaid / std::max<int64_t>(1, t.rows),
                                                        kLeastInputs, kMostInputs);
  const int64_t parts = std::max<int64_t>(1, (p.k + most_inputs - 1) / most_inputs);
  const int64_t share = (p.k + parts - 1) / parts;
  const Tasks tasks(t.rows, t.columns, share, kBlockRows);
  const bool lies_in_panels = t.w_column == 1 && reads_as_it_lies(t.rows) && p.alpha == 1.0F;
  float* laid = lies_in_rows ? nullptr : memory_of_thread<0>(t.rows * share);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t i = part * share, k = std::min(share, p.k - i);
    const bool adds = p.adds || part > 0;
    const float* x = t.x + i * t.x_step;
    if (!lies_in_rows) {
      parallel_for(tasks.blocks, tasks.grain, [&](int64_t begin, int64_t end) HWY_ATTR {
        const int64_t end_row = std::min(end * tasks.block_rows, t.rows);
        over_rows(begin * tasks.block_rows, end_row, [&](auto rows, int64_t row) HWY_ATTR {
          lay_out_rows<rows()>(t, x, row, k, laid + row * k);
        });
      });
    }
    parallel_for(
        tasks.blocks * tasks.panels, tasks.grain, [&](int64_t begin, int64_t end) HWY_ATTR {
          float* panel = memory_of_thread<1>(k * kPanel);
          // The tasks of one panel at a time, which is laid out for all of them.
          for (int64_t next; begin < end; begin = next) {
            const int64_t block = begin % tasks.blocks, column = begin / tasks.blocks * kPanel;
            next = std::min(end, begin - block + tasks.blocks);
            const int64_t columns = std::min(kPanel, t.columns - column);
            const float* w = t.w + i * t.w_step + column * t.w_column;
            int64_t width = t.w_step;
            if (!lies_in_panels || columns < kPanel) {
              width = panel_width(columns);
              lay_out(t, w, k, columns, width, p.alpha, panel);
              w = panel;
            }
            const int64_t end_row = std::min((block + next - begin) * tasks.block_rows, t.rows);
            over_rows(block * tasks.block_rows, end_row, [&](auto rows, int64_t row) HWY_ATTR {
              const float* own = lies_in_rows ? x + row * t.x_row : laid + row * k;
              const int64_t x_row = lies_in_rows ? t.x_row : 1;
              const int64_t x_step = lies_in_rows ? 1 : static_cast<int64_t>(rows());
              over_panel<rows()>(width, columns, [&](auto vectors, int64_t at) HWY_ATTR {
                matrix_tile<rows(), vectors()>(p, t, own, x_row, x_step, row, column + at, w + at,
                                               width, k, adds);
              });
            });
          }
        });
  }
}

}  // namespace

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

void run(const Product& product, const ParallelFor& parallel_for) {
  NSN_AT_LEVEL(run_packed)(product, parallel_for);
}

void run(const MatrixProduct& product, const ParallelFor& parallel_for) {
  NSN_AT_LEVEL(run_matrix)(product, parallel_for);
}

}  // namespace nsn::kernels
#endif
