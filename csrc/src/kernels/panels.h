#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/weight_type.h"

// How weights of products and convolutions lie in memory: in panels of output features.
//
// A weight (out, in, taps), a product's having one tap, is cut into boxes: intervals of its output
// features times intervals of its inputs. A box is panels of 32 features one behind the other, each
// (in, taps, width); the last has width 16 where it has no more than 16 features. Features that
// there are not are zeros. At batch 1 a product reads panels once from front to back, and with more
// rows a panel stays in the cache. A leading slice is the first features and the first
// inputs of the same panels, so that a box alone serves all; several boxes let each lie where it is
// wanted.

namespace nsn::kernels {

/// Output features of a panel; the last one of a box may have half as many.
constexpr int64_t kPanel = 32, kHalfPanel = 16;

/// The width of the panel that begins where so many features are left.
constexpr int64_t panel_width(int64_t features) {
  return features > kHalfPanel ? kPanel : kHalfPanel;
}

/// Elements of a box.
constexpr int64_t panel_elements(int64_t out, int64_t in, int64_t taps) {
  return (out + kHalfPanel - 1) / kHalfPanel * kHalfPanel * in * taps;
}

/// A weight as it lies elsewhere: (out, in, taps).
struct WeightSource {
  const float* data;
  std::array<int64_t, 3> sizes, strides;
};

/// Copies it to the panels of one box.
void fill_panels(const WeightSource& weight, float* box);

/// Rows of a panel behind each other, those of all taps for so many inputs, of the type that the
/// weight has.
struct Segment {
  const void* weights;
  int64_t inputs;
};

/// Output features [feature, feature + features).
struct Panel {
  int64_t feature, features, width;
  /// All rows, in order.
  const Segment* segments;
  size_t segment_count;
};

/// A weight, or a leading slice of one, where its boxes lie.
class Panels {
 public:
  /// Intervals by their ends, the first beginning at 0; boxes by the interval of features, then by
  /// that of inputs, of which those that the slice does not touch are not read. `out` and `in`: of
  /// the slice.
  Panels(const std::vector<int64_t>& out_ends, const std::vector<int64_t>& in_ends,
         const std::vector<const void*>& boxes, WeightType type, int64_t taps, int64_t out,
         int64_t in);
  /// Of float32, as one box.
  Panels(const float* box, const std::array<int64_t, 3>& sizes, int64_t out, int64_t in)
      : Panels({sizes[0]}, {sizes[1]}, {box}, WeightType::kFloat32, sizes[2], out, in) {}

  Panels(Panels&&) = default;
  Panels& operator=(Panels&&) = default;
  Panels(const Panels&) = delete;
  Panels& operator=(const Panels&) = delete;
  ~Panels() = default;

  const Panel& operator[](int64_t i) const { return panels_[static_cast<size_t>(i)]; }
  int64_t size() const { return static_cast<int64_t>(panels_.size()); }
  WeightType type() const { return type_; }

 private:
  WeightType type_;
  std::vector<Segment> segments_;
  std::vector<Panel> panels_;
};

}  // namespace nsn::kernels
