// Tiles of a product: rows times panels of a weight, in registers. What products of packed weights
// (product.cpp) and of matrices as they lie (matrix_product.cpp) have in common.
//
// Included once for each level, behind kernels/per_level.h; the guard is that of Highway.
#if defined(NSN_TILES_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef NSN_TILES_INL
#undef NSN_TILES_INL
#else
#define NSN_TILES_INL
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/columns_inl.h"
#include "kernels/panel_tiles.h"
#include "kernels/shares.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
constexpr size_t kLanes = HWY_MAX_BYTES >= 64 ? 16 : HWY_MAX_BYTES / sizeof(float);

/// Whether code is to be small before all: SSE4 runs on old processors alone.
constexpr bool kIsSmall = HWY_TARGET == HWY_SSE4;
/// Registers for a tile's sums, and for the weights or the factors of an input, whichever are
/// fewer. One more holds one of the others, and where adding is by itself, as with SSE4 and in
/// WebAssembly, another the product; on ARM compilers read several of the others ahead.
constexpr size_t kRegisters = HWY_ARCH_ARM_A64            ? 32 - 6
                              : HWY_MAX_BYTES >= 64       ? 32 - 1
                              : kIsSmall || HWY_ARCH_WASM ? 16 - 2
                                                          : 16 - 1;
/// Rows of a tile, where there are enough.
constexpr size_t kRows = HWY_MAX_BYTES >= 64 ? 8 : HWY_ARCH_ARM_A64 ? 5 : kIsSmall ? 4 : 6;
/// Rows of the last tile, where there are several.
constexpr size_t kLeastRows = kIsSmall ? 2 : 3;
/// Rows of a tile of two panels, where there are registers for it: each factor that is read then
/// serves twice as many sums.
constexpr size_t kPairRows = HWY_MAX_BYTES >= 64 ? 6 : 0;
/// Sums that run side by side at least, so that none waits for the one before.
constexpr size_t kLeastSums = 8;

/// Vectors side by side of a tile of so many rows: a whole panel for few.
constexpr size_t vectors_for(size_t rows) {
  size_t vectors = kPanel / kLanes;
  while (rows * vectors + std::min(rows, vectors) > kRegisters) vectors /= 2;
  return vectors;
}

/// Of a tile of few rows each element has several sums, over every so many-th input.
constexpr size_t sums_for(size_t rows, size_t vectors) {
  size_t sums = 1;
  while (sums < 4 && sums * rows * vectors < kLeastSums &&
         2 * sums * rows * vectors + std::min(rows, vectors) <= kRegisters) {
    sums *= 2;
  }
  return sums;
}

/// A vector of weights of any type.
template <typename Weight>
HWY_INLINE V load_weights(D d, const Weight* from) {
  if constexpr (std::is_same_v<Weight, float>) {
    return hn::LoadU(d, from);
  } else if constexpr (std::is_same_v<Weight, int8_t>) {
    const hn::RebindToSigned<D> d32;
    return hn::ConvertTo(d, hn::PromoteTo(d32, hn::LoadU(hn::Rebind<int8_t, D>(), from)));
  } else {
    return hn::PromoteTo(d, hn::LoadU(hn::Rebind<Weight, D>(), from));
  }
}

/// A pointer that the compiler knows nothing of: what lies there it reads where it is asked for,
/// and keeps no register for it in loops before.
template <typename T>
HWY_INLINE T* hide(T* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

/// The products of rows with weights, which lie in `panels` panels with equal shares of the
/// vectors. Over which inputs: `runs` calls what it is given with (from, x, weights, count, place)
/// for runs of them, `place(i)` saying where input i of a run lies behind the element x of each
/// row, and its weights behind those.
template <typename Weight, size_t panels, size_t rows, size_t vectors, typename Runs>
HWY_INLINE void multiply(const Runs& runs, V (&total)[rows][vectors]) {
  static_assert(vectors % panels == 0);
  constexpr size_t kOfPanel = vectors / panels;
  const D d;
  constexpr size_t kSums = sums_for(rows, vectors);
  V sum[kSums][rows][vectors];
  HWY_UNROLL(8)
  for (size_t s = 0; s < kSums; ++s) {
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) {
      HWY_UNROLL(8)
      for (size_t v = 0; v < vectors; ++v) sum[s][r][v] = hn::Zero(d);
    }
  }
  runs([&](const float* const* from, int64_t x, const Weight* const(&weights)[panels],
           int64_t count, const auto& place) HWY_ATTR {
    const float* row[rows];
    HWY_UNROLL(8)
    for (size_t r = 0; r < rows; ++r) row[r] = from[r] + x;
    const auto add = [&](V(&to)[rows][vectors], const Place& at) HWY_ATTR {
      const auto weight = [&](size_t v) HWY_ATTR {
        return load_weights(d, weights[v / kOfPanel] + at.weight + v % kOfPanel * kLanes);
      };
      const auto factor = [&](size_t r) HWY_ATTR { return hn::Set(d, row[r][at.x]); };
      // Those of which there are fewer are held.
      if constexpr (rows < vectors) {
        V f[rows];
        HWY_UNROLL(8)
        for (size_t r = 0; r < rows; ++r) f[r] = factor(r);
        HWY_UNROLL(8)
        for (size_t v = 0; v < vectors; ++v) {
          const V w = weight(v);
          HWY_UNROLL(8)
          for (size_t r = 0; r < rows; ++r) to[r][v] = hn::MulAdd(f[r], w, to[r][v]);
        }
      } else {
        V w[vectors];
        HWY_UNROLL(8)
        for (size_t v = 0; v < vectors; ++v) w[v] = weight(v);
        HWY_UNROLL(8)
        for (size_t r = 0; r < rows; ++r) {
          const V f = factor(r);
          HWY_UNROLL(8)
          for (size_t v = 0; v < vectors; ++v) to[r][v] = hn::MulAdd(f, w[v], to[r][v]);
        }
      }
    };
    int64_t k = 0;
    for (; k + static_cast<int64_t>(kSums) <= count; k += kSums) {
      HWY_UNROLL(4)
      for (size_t s = 0; s < kSums; ++s) add(sum[s], place(k + static_cast<int64_t>(s)));
    }
    if constexpr (kSums > 1) {
      for (; k < count; ++k) add(sum[0], place(k));
    }
  });
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
  // Of half a panel one vector alone, where that is enough.
  constexpr int64_t kOne = kOfHalf > 1 && !kIsSmall ? kLanes : 0;
  for (; at + kOne < used; at += kHalf) each(std::integral_constant<size_t, kOfHalf>(), at);
  if constexpr (kOne > 0) {
    if (at < used) each(std::integral_constant<size_t, 1>(), at);
  }
}

/// Calls `each(rows, first)`, for `count` rows, at most so many.
template <size_t most, typename Each>
HWY_INLINE void with_rows(int64_t first, int64_t count, const Each& each) {
  if constexpr (most > 0) {
    if (count == static_cast<int64_t>(most)) {
      each(std::integral_constant<size_t, most>(), first);
    } else {
      with_rows<most - 1>(first, count, each);
    }
  }
}

/// The same for those tiles, whole ones of at most kRows, that the rows [first, end) are.
template <typename Each>
HWY_INLINE void over_rows(const RowTiles& tiles, int64_t first, int64_t end, const Each& each) {
  for (int64_t rows = 0; first < end; first += rows) {
    rows = tiles.size_at(first);
    with_rows<kRows>(first, rows, each);
  }
}

}  // namespace

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
