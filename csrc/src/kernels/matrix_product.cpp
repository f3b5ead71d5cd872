#include "kernels/matrix_product.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>

#include "kernels/level.h"
#include "kernels/shares.h"

#ifndef NSN_MATRIX_PRODUCT_ONCE
#define NSN_MATRIX_PRODUCT_ONCE
namespace nsn::kernels {
namespace {

/// Memory of this thread on a cache line, kept from call to call; one for each `use`.
template <int use>
float* memory_of_thread(int64_t elements) {
  constexpr size_t kLine = 64;
  thread_local std::unique_ptr<float[]> memory;
  thread_local size_t size = 0;
  const size_t needed = static_cast<size_t>(elements) + kLine / sizeof(float);
  if (size < needed) {
    memory.reset(new float[needed]);
    size = needed;
  }
  const auto begin = reinterpret_cast<uintptr_t>(memory.get());
  return memory.get() + (kLine - begin % kLine) % kLine / sizeof(float);
}

}  // namespace
}  // namespace nsn::kernels
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/matrix_product.cpp"
#include "kernels/per_level.h"
// After per_level.h, and once for each level.
#include "kernels/tiles_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

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

/// `rows` rows, which lie as given, times `vectors` vectors of a panel. Each shape is a function by
/// itself: compilers take minutes for one that holds all, under sanitizers.
template <size_t rows, size_t vectors>
HWY_NOINLINE void matrix_tile(const MatrixProduct& p, const Turned& t, const float* x,
                              int64_t x_row, int64_t x_step, int64_t first, int64_t column,
                              const float* panel, int64_t width, int64_t k, bool adds) {
  const D d;
  V sum[rows][vectors];
  const float* from[rows];
  HWY_UNROLL(8)
  for (size_t r = 0; r < rows; ++r) from[r] = x + static_cast<int64_t>(r) * x_row;
  const float* const weights[] = {panel};
  multiply<float, 1>(
      [&](const auto& run) HWY_ATTR {
        run(from, 0, weights, k, [&](int64_t i) HWY_ATTR { return Place{i * x_step, i * width}; });
      },
      sum);
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
  constexpr int64_t kLeastInputs = 64, kMostLaid = int64_t{1} << 22;
  const bool lies_in_rows = t.x_step == 1;
  const int64_t most_inputs = lies_in_rows ? kMostInputs
                                           : std::clamp(kMostLaid / std::max<int64_t>(1, t.rows),
                                                        kLeastInputs, kMostInputs);
  const int64_t parts = std::max<int64_t>(1, (p.k + most_inputs - 1) / most_inputs);
  const int64_t share = (p.k + parts - 1) / parts;
  const Blocks blocks(t.rows, kBlockRows, kRows);
  const RowTiles tiles{t.rows, kRows, kLeastRows};
  // The first row of a block.
  const auto begin_of = [&](int64_t block) {
    return tiles.begin(block * (blocks.rows / static_cast<int64_t>(kRows)));
  };
  const int64_t panels = (t.columns + kPanel - 1) / kPanel;
  const int64_t grain = grain_for(std::min(blocks.rows, t.rows) * share * kPanel);
  const bool lies_in_panels = t.w_column == 1 && reads_as_it_lies(t.rows) && p.alpha == 1.0F;
  float* laid = lies_in_rows ? nullptr : memory_of_thread<0>(t.rows * share);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t i = part * share, k = std::min(share, p.k - i);
    const bool adds = p.adds || part > 0;
    const float* x = t.x + i * t.x_step;
    if (!lies_in_rows) {
      parallel_for(blocks.count, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
        over_rows(tiles, begin_of(begin), begin_of(end), [&](auto rows, int64_t row) HWY_ATTR {
          lay_out_rows<rows()>(t, x, row, k, laid + row * k);
        });
      });
    }
    parallel_for(blocks.count * panels, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
      float* panel = p.panel != nullptr ? p.panel : memory_of_thread<1>(k * kPanel);
      // The tasks of one panel at a time, which is laid out for all of them.
      for (int64_t next; begin < end; begin = next) {
        const int64_t block = begin % blocks.count, column = begin / blocks.count * kPanel;
        next = std::min(end, begin - block + blocks.count);
        const int64_t columns = std::min(kPanel, t.columns - column);
        const float* w = t.w + i * t.w_step + column * t.w_column;
        int64_t width = t.w_step;
        if (!lies_in_panels || columns < kPanel) {
          width = panel_width(columns);
          lay_out(t, w, k, columns, width, p.alpha, panel);
          w = panel;
        }
        const int64_t end_row = begin_of(block + next - begin);
        over_rows(tiles, begin_of(block), end_row, [&](auto rows, int64_t row) HWY_ATTR {
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

void run(const MatrixProduct& product, const ParallelFor& parallel_for) {
  NSN_AT_LEVEL(run_matrix)(product, parallel_for);
}

}  // namespace nsn::kernels
#endif
