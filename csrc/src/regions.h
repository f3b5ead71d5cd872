#pragma once

#include <c10/util/ArrayRef.h>

#include <optional>
#include <vector>

#include "nsn/merge.h"

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

/// Multiplies each region of `merged` with the coefficient that its lanes have in common.
void scale_regions(const at::Tensor& merged, const std::vector<Region>& regions);

/// Whether all lanes have one coefficient in each region.
bool are_uniform(const std::vector<Region>& regions);

/// Whether the merged gradient is the plain derivative: all coefficients are one.
bool are_plain(const std::vector<Region>& regions);

/// For each of `lanes` lanes the one coefficient that it has in all its regions; nothing if some
/// lane has several.
std::optional<std::vector<double>> constant_coefficients(const std::vector<Region>& regions,
                                                         size_t lanes);

}  // namespace nsn::merge
