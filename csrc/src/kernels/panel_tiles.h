#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/panels.h"
#include "kernels/positions.h"
#include "kernels/product.h"
#include "kernels/shares.h"

// Tiles of products with panels: some rows times a panel, or times two that lie behind each other,
// with the sums in registers. product.cpp cuts products into what is asked for here.

namespace nsn::kernels {

/// Where the result of an output position goes: of the first of `origin`, and how far it is from
/// there to those beside and below it, and of the next sample.
struct Target {
  Positions origin;
  float* y;
  int64_t column, line, sample;

  Target behind(int64_t features) const { return {origin, y + features, column, line, sample}; }
};

/// Rows, one after the other: where each begins, and where its results go. Numbers and not
/// pointers: behind the last row nothing has to lie.
class Rows {
 public:
  /// Of a matrix.
  Rows(const float* x, int64_t x_step, float* y, int64_t y_step)
      : x_(x), y_(y), step_{x_step, y_step} {}

  /// Of a region of an image, from its position `first` on: the first input that its windows read.
  Rows(const float* x, const Window& window, int64_t in, const Region& region, int64_t first,
       const Target& to)
      : x_(x), y_(to.y), step_{0, to.column} {
    const auto& [samples, lines, columns] = region.positions;
    width_ = columns.size();
    height_ = lines.size();
    const int64_t above = first == 0 ? 0 : first / width_, whole = above / height_;
    const int64_t column = columns.begin + first - above * width_;
    const int64_t line = lines.begin + above - whole * height_;
    const int64_t sample = samples.begin + whole;
    in_line_ = columns.end - column;
    lines_ = lines.end - line;
    at_.y = (sample - to.origin.samples.begin) * to.sample +
            (line - to.origin.lines.begin) * to.line +
            (column - to.origin.columns.begin) * to.column;
    next_line_.y = to.line - width_ * to.column;
    next_sample_.y = to.sample - height_ * to.line;
    if (region.tap_count() == 0) return;  // nothing is read
    const auto input = [&](size_t d, int64_t position) {
      return position * window.stride[d] - window.padding[d] +
             region.taps[d].begin * window.dilation[d];
    };
    const int64_t x_line = window.stride[0] * window.in_size[1] * in;
    step_.x = window.stride[1] * in;
    at_.x = (sample * window.inputs() + input(0, line) * window.in_size[1] + input(1, column)) * in;
    next_line_.x = x_line - width_ * step_.x;
    next_sample_.x = window.inputs() * in - height_ * x_line;
  }

  /// The same for features behind these.
  Rows behind(int64_t features) const {
    Rows result = *this;
    result.y_ += features;
    return result;
  }

  template <size_t rows>
  void next(const float* (&x)[rows], float* (&y)[rows]) {
    constexpr auto kCount = static_cast<int64_t>(rows);
    if (in_line_ < kCount) {
      for (size_t r = 0; r < rows; ++r) take(1, x + r, y + r);
    } else {
      take(kCount, x, y);
    }
  }

 private:
  /// Elements of both.
  struct Both {
    int64_t x = 0, y = 0;

    void operator+=(const Both& step) {
      x += step.x;
      y += step.y;
    }
  };

  /// Of so many rows of the same line.
  void take(int64_t count, const float** x, float** y) {
    const float* const first_x = x_ + at_.x;
    float* const first_y = y_ + at_.y;
    for (int64_t r = 0; r < count; ++r) {
      x[r] = first_x + r * step_.x;
      y[r] = first_y + r * step_.y;
    }
    at_.x += count * step_.x;
    at_.y += count * step_.y;
    in_line_ -= count;
    if (in_line_ > 0) return;
    in_line_ = width_;
    at_ += next_line_;
    if (--lines_ > 0) return;
    lines_ = height_;
    at_ += next_sample_;
  }

  const float* x_;
  float* y_;
  /// Of the row that is next, and from one to the next in a line.
  Both at_, step_;
  /// A matrix is one line without an end.
  int64_t in_line_ = std::numeric_limits<int64_t>::max(), lines_ = 0, width_ = 0, height_ = 0;
  /// From behind the last row of a line, or of a sample, to the first of the next.
  Both next_line_, next_sample_;
};

/// Where an input lies in a row, and its weights in a panel.
struct Place {
  int64_t x, weight;
};

/// What is read of rows that are windows of a region: a loop over `inputs` inputs, of which each
/// has `of_input` taps there, and of which a panel has `rows` rows. Without places: a matrix.
struct Taps {
  const Place* places = nullptr;
  int64_t inputs = 0, of_input = 0, rows = 0;
};

/// As many features as a pair of panels has.
using Features = std::array<float, 2 * kPanel>;
constexpr Features all_features(float value) {
  Features result{};
  for (float& each : result) each = value;
  return result;
}
inline constexpr Features kOnes = all_features(1.0F), kZeros = all_features(0.0F);

/// The epilogue of the features of one panel, or of a pair: all of it at all times, which is less
/// than to ask for each part.
class Ends {
 public:
  /// Each of 2 * kPanel elements, or of as many as the panels are wide.
  const float *scale, *bias;
  float least;

  Ends(const Epilogue& epilogue, const Panel* panel, int64_t panels)
      : least(epilogue.relu ? 0.0F : -std::numeric_limits<float>::infinity()) {
    const Panel& last = panel[panels - 1];
    const int64_t features = last.feature + last.features - panel->feature;
    const auto whole = [&](const float* from, const Features& none, Features& own) {
      if (from == nullptr) return none.data();
      from += panel->feature;
      if (last.features == last.width) return from;
      own = kZeros;
      std::copy_n(from, features, own.begin());
      return static_cast<const float*>(own.data());
    };
    scale = whole(epilogue.scale, kOnes, scales_);
    bias = whole(epilogue.bias, kZeros, biases_);
  }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;

 private:
  Features scales_, biases_;
};

/// What is done with panels that lie behind each other: the first of two, one, or the second.
struct Way {
  const Taps& taps;
  const float *scale, *bias;
  float least;
  /// Whether products are added to what the results are already.
  bool adds;

  /// For features behind the first of `ends`.
  Way(const Taps& inputs, const Ends& ends, bool adding, int64_t behind = 0)
      : taps(inputs),
        scale(ends.scale + behind),
        bias(ends.bias + behind),
        least(ends.least),
        adds(adding) {}
  Way(const Way& way, int64_t behind)
      : taps(way.taps),
        scale(way.scale + behind),
        bias(way.bias + behind),
        least(way.least),
        adds(way.adds) {}
};

/// How a level's tiles are, and what they do.
struct PanelTiles {
  /// Rows of a tile, of the last of several at least, and of a tile of two panels, 0 where there
  /// are none.
  int64_t rows, least_rows, pair_rows;

  /// `some` of the rows that are cut into `tiles`, whole ones, times `panels` panels of float32, 1
  /// or
  /// 2. `rows` begins at the first of them.
  void (*multiply)(const Way& way, const Panel* panel, int64_t panels, Rows& rows,
                   const RowTiles& tiles, const Interval& some);
  /// One row of a matrix times a panel of a narrower type as it is; null where code is to be small.
  void (*multiply_narrow)(const Way& way, const Panel& panel, WeightType type, const float* x,
                          float* y);
  /// Makes float32 of `count` elements, whole panel rows.
  void (*expand)(WeightType type, const void* from, int64_t count, float* to);
  /// Of `count` pools beside each other, (down, right) rows of kPanel, `line` elements from line to
  /// line, the largest of each of some features; NaN where one is.
  void (*keep_largest)(const std::array<int64_t, 2>& pool, const float* from, int64_t line,
                       int64_t count, int64_t features, float* y, int64_t y_step);
};

/// Those of this process's level.
const PanelTiles& panel_tiles();

}  // namespace nsn::kernels
