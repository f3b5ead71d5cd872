#pragma once

#include <algorithm>
#include <cstdint>

// How products are cut into tasks, for threads to share.

namespace nsn::kernels {

/// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kLeastWork = int64_t{1} << 16;

/// So many tasks of `work` multiply-adds are worth a thread.
constexpr int64_t grain_for(int64_t work) {
  return std::max<int64_t>(1, (kLeastWork + work - 1) / std::max<int64_t>(1, work));
}

/// Rows cut into tiles of `step`. The last two tiles share theirs where the last one would have
/// fewer than `least`, and read all weights for little.
struct RowTiles {
  int64_t rows, step, least;

  int64_t count() const { return (rows + step - 1) / step; }
  /// The first row of a tile, behind the last all rows.
  int64_t begin(int64_t tile) const {
    const int64_t plain = tile * step, left = rows - plain;
    if (left <= 0) return rows;
    return tile > 0 && left < least ? rows - least : plain;
  }
  /// Rows of the tile that begins there.
  int64_t size_at(int64_t first) const {
    const int64_t left = rows - first;
    if (left <= step) return left;
    return left < step + least ? left - least : step;
  }
};

/// Blocks of rows that a product is cut into, whole tiles of `step` rows each.
struct Blocks {
  int64_t rows, count;

  Blocks(int64_t all_rows, int64_t most_rows, int64_t step) {
    const int64_t most = std::max(step, most_rows / step * step);
    // Blocks of equal size, so that threads get equal shares.
    const int64_t least = std::max<int64_t>(1, (all_rows + most - 1) / most);
    const int64_t share = (all_rows + least - 1) / least;
    rows = std::max(step, (share + step - 1) / step * step);
    count = (all_rows + rows - 1) / rows;
  }
};

}  // namespace nsn::kernels
