#pragma once

#include <algorithm>
#include <cstdint>

// How products are cut into tasks, for threads to share.

namespace nsn::kernels {

/// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kLeastWork = int64_t{1} << 16;

/// So many tasks of `work` multiply-adds are worth a thread.
constexpr int64_t grain_for(int64_t work) {
  return std::max<int64_t>(1, kLeastWork / std::max<int64_t>(1, work));
}

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
