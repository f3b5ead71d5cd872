#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/window.h"

// The output positions of convolutions by what their windows read: at the edges of an image some
// taps lie outside, which is known for all positions of a region at once.

namespace nsn::kernels {

/// Numbers from `begin` to before `end`.
struct Interval {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
  Interval behind(int64_t other) const { return {other + begin, other + end}; }
  /// What lies in both.
  Interval within(const Interval& other) const {
    const int64_t first = std::max(begin, other.begin);
    return {first, std::max(first, std::min(end, other.end))};
  }
};

/// `all` in `count` parts of nearly the same size, at most `most`.
struct Pieces {
  int64_t all, count;

  Pieces(int64_t of, int64_t most)
      : all(of), count(0 < of && of <= most ? 1 : (of + most - 1) / most) {}

  int64_t largest() const { return quotient(all + count - 1, count); }
  Interval operator[](int64_t i) const {
    return {quotient(i * all, count), quotient((i + 1) * all, count)};
  }
};

/// Output positions of some samples.
struct Positions {
  Interval samples, lines, columns;

  int64_t count() const { return samples.size() * lines.size() * columns.size(); }
};

/// Positions whose windows read the same taps, down and right.
struct Region {
  Positions positions;
  std::array<Interval, 2> taps;

  int64_t tap_count() const { return taps[0].size() * taps[1].size(); }
};

/// The taps that the window at `position` has inside of the input, and the end of the positions
/// before `last` that have the same.
struct SameTaps {
  Interval taps;
  int64_t end;

  SameTaps(const Window& window, size_t d, int64_t position, int64_t last) : end(position + 1) {
    const Inside inside(window, d, position);
    taps = {inside.first, inside.first + inside.count};
    if (inside.count == window.kernel[d]) {
      // Up to the last one that ends inside.
      const int64_t reach = (window.kernel[d] - 1) * window.dilation[d];
      const int64_t room = window.in_size[d] - 1 + window.padding[d] - reach;
      end = std::min(last, quotient(room, window.stride[d]) + 1);
      return;
    }
    for (; end < last; ++end) {
      const Inside next(window, d, end);
      if (next.first != inside.first || next.count != inside.count) return;
    }
  }
};

/// Calls `each(region)` for the regions of all these positions.
template <typename Each>
void over_regions(const Window& window, const Positions& all, const Each& each) {
  for (int64_t line = all.lines.begin; line < all.lines.end;) {
    const SameTaps down(window, 0, line, all.lines.end);
    for (int64_t column = all.columns.begin; column < all.columns.end;) {
      const SameTaps right(window, 1, column, all.columns.end);
      each(Region{{all.samples, {line, down.end}, {column, right.end}}, {down.taps, right.taps}});
      column = right.end;
    }
    line = down.end;
  }
}

}  // namespace nsn::kernels
