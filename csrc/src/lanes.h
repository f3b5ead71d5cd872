#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstddef>
#include <cstdint>
#include <vector>

// How lanes lie in memory: one after the other in one buffer, so that what reads them next finds
// them stacked already.

namespace nsn::detail {

/// A tensor on part of `buffer`'s storage, `first` elements behind its begin, that autograd does
/// not take for a view of it.
at::Tensor part(const at::Tensor& buffer, int64_t first, at::IntArrayRef sizes);

/// `tensor` as a contiguous matrix of its last dimension.
at::Tensor as_rows(const at::Tensor& tensor);

/// The matrices on top of each other. Copies nothing where they already lie so.
at::Tensor stack_rows(const std::vector<at::Tensor>& matrices);

/// Lanes that share a tensor, as told by `same_as` (see functional.h).
struct Groups {
  explicit Groups(c10::ArrayRef<size_t> same_as);

  /// Whether no two lanes share.
  bool each_its_own() const { return first.size() == group_of.size(); }

  /// Puts groups whose tensors lie in one buffer in the order in which they lie there.
  void sort_as_laid(at::TensorList tensors);

  /// The first lane of each group.
  std::vector<size_t> first;
  /// For each lane the place of its group in `first`.
  std::vector<size_t> group_of;
};

}  // namespace nsn::detail
