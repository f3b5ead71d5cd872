#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "nsn/operations/lanes.h"

// How tensors of lanes lie in memory: one after the other in one buffer, so that what reads them
// next finds them stacked already.

namespace nsn::detail {

/// A tensor on part of `buffer`'s storage, `first` elements behind its begin, that autograd does
/// not take for a view of it.
at::Tensor part(const at::Tensor& buffer, int64_t first, at::IntArrayRef sizes);

at::Tensor part(const at::Tensor& buffer, int64_t first, at::IntArrayRef sizes,
                at::IntArrayRef strides);

/// Whether nobody but its one holder can read the tensor's memory: then an operation may write into
/// it. Asked here alone, by Lanes too.
bool is_spare(const at::Tensor& tensor);

/// A tensor for a caller, who may write into what it gets: itself where all of its storage is its
/// own and spare, else a copy.
at::Tensor own_memory(at::Tensor tensor);

/// A new buffer that is handed out from front to back.
class LaneBuffer {
 public:
  /// Of so many elements, and the room that `memory` asks for behind them.
  LaneBuffer(const functional::Memory& memory, int64_t numel, const at::TensorOptions& options);

  /// As many elements as all `tensors` have; undefined ones have none.
  static int64_t numel_of(at::TensorList tensors);

  /// The next tensor, uninitialised.
  at::Tensor next(at::IntArrayRef sizes);

 private:
  at::Tensor buffer_;
  int64_t used_ = 0;
};

/// What lies one behind the other from the begin of `buffer`, as `LaneBuffer` hands it out: one
/// part for each of `like`, where it is defined.
std::vector<at::Tensor> split_as(const at::Tensor& buffer, at::TensorList like);

/// `compute(x)` of a block that is not nsn's, which might work in place: on memory that is not
/// spare that would change what other lanes, the backward or the caller read. Throws
/// c10::ValueError, beginning with what `who()` gives, where it did.
template <typename Who, typename Compute>
at::Tensor compute_outside(const at::Tensor& x, const Who& who, const Compute& compute) {
  if (is_spare(x)) return compute(x);
  if (x.is_inference()) return compute(x.clone());  // keeps no count of versions
  const auto version = x._version();
  at::Tensor y = compute(x);
  TORCH_CHECK_VALUE(x._version() == version, who(),
                    " works in place on its input, which other sub-networks, the backward or the "
                    "caller may still read. Let it compute a new tensor, or work on a copy, "
                    "x.clone().");
  return y;
}

/// A vector along dimension `dim` of what it is multiplied with or added to.
at::Tensor along(const at::Tensor& vector, int64_t dim, const at::Tensor& like);

/// `tensor` as a matrix of its last dimension whose rows are contiguous.
at::Tensor as_rows(const at::Tensor& tensor);

/// The matrices on top of each other. Copies nothing where they already lie so.
at::Tensor stack_rows(const std::vector<at::Tensor>& matrices);

/// Puts `items` whose tensors lie in one buffer in the order in which they lie there.
template <typename TensorOf>
void sort_as_laid(std::vector<size_t>& items, const TensorOf& tensor_of) {
  for (const size_t item : items) {
    if (!tensor_of(item).is_alias_of(tensor_of(items[0]))) return;
  }
  std::stable_sort(items.begin(), items.end(), [&](size_t a, size_t b) {
    return tensor_of(a).storage_offset() < tensor_of(b).storage_offset();
  });
}

/// Lanes that share a tensor, as told by `same_as` (see functional/functional.h).
struct Groups {
  explicit Groups(c10::ArrayRef<size_t> same_as);

  /// The first lane of each group.
  std::vector<size_t> first;
  /// For each lane the place of its group in `first`.
  std::vector<size_t> group_of;
};

}  // namespace nsn::detail
