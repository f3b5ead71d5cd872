#pragma once

#include <c10/util/ArrayRef.h>

#include <optional>
#include <vector>

#include "nsn/values/merge.h"

// The boxes of a parameter in which a linear rule's coefficients do not change.

namespace nsn::merge {

/// A box of a parameter that the same lanes cover all over, and their coefficients in it.
struct Region {
  Slice begin, end;
  std::vector<size_t> lanes;
  std::vector<double> coefficients;
};

/// Splits `shape` into the boxes that the slices' borders cut it into, those without a lane left
/// out. Slices are leading but may cross (1/2 x 1 and 1 x 1/2), so this is a grid and no chain.
std::vector<Region> regions(const Rule& rule, c10::ArrayRef<Lane> lanes,
                            c10::ArrayRef<Slice> slices, at::IntArrayRef shape);

/// `tensor[begin:end]`, a view.
at::Tensor box(const at::Tensor& tensor, const Slice& begin, const Slice& end);

/// `tensor[:slice]`, a view; the tensor itself where the slice is all of it.
at::Tensor leading(const at::Tensor& tensor, const Slice& slice);

/// What `slice` keeps of `tensor.view(view)`, in the extents `kept`: a view where it can be, else a
/// copy.
at::Tensor slice_of_view(const at::Tensor& tensor, at::IntArrayRef view, const Slice& slice,
                         at::IntArrayRef kept);

/// Multiplies each region of `merged` with the coefficient that its lanes have in common.
void scale_regions(const at::Tensor& merged, const std::vector<Region>& regions);

/// Whether the merged gradient is the plain derivative: the rule is linear, and all coefficients
/// are one.
bool is_plain(const Rule& rule, c10::ArrayRef<Lane> lanes, c10::ArrayRef<Slice> slices,
              at::IntArrayRef shape);

/// How a linear rule can be applied to whole lanes.
struct LaneCoefficients {
  std::vector<Region> regions;
  /// What each lane's gradient is multiplied with; nothing if the coefficients change from region
  /// to region, and from lane to lane in one. For function rules nothing, and no regions.
  std::optional<std::vector<double>> of_lanes;
  /// Whether the sum of the lanes is multiplied region by region afterwards (`scale_regions`).
  bool scales_regions = false;
};
LaneCoefficients lane_coefficients(const Rule& rule, c10::ArrayRef<Lane> lanes,
                                   c10::ArrayRef<Slice> slices, at::IntArrayRef shape);

}  // namespace nsn::merge
