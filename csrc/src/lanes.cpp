#include "lanes.h"

#include <ATen/ops/cat.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <utility>

namespace nsn::detail {

at::Tensor part(const at::Tensor& buffer, int64_t first, at::IntArrayRef sizes) {
  at::Tensor result = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(buffer.storage()),
                                                               buffer.key_set(), buffer.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_storage_offset(buffer.storage_offset() + first);
  impl->set_sizes_contiguous(sizes);
  return result;
}

at::Tensor as_rows(const at::Tensor& tensor) {
  if (tensor.dim() == 2 && tensor.is_contiguous()) return tensor;
  return tensor.reshape({-1, tensor.size(-1)}).contiguous();
}

at::Tensor stack_rows(const std::vector<at::Tensor>& matrices) {
  if (matrices.size() == 1) return matrices[0];
  const int64_t columns = matrices[0].size(1);
  int64_t rows = 0;
  bool adjacent = true;
  for (const at::Tensor& matrix : matrices) {
    adjacent = adjacent && matrix.is_alias_of(matrices[0]) &&
               matrix.storage_offset() == matrices[0].storage_offset() + rows * columns;
    rows += matrix.size(0);
  }
  return adjacent ? part(matrices[0], 0, {rows, columns}) : at::cat(matrices);
}

Groups::Groups(c10::ArrayRef<size_t> same_as) : group_of(same_as.size()) {
  for (const size_t lane : c10::irange(same_as.size())) {
    if (same_as[lane] == lane) {
      group_of[lane] = first.size();
      first.push_back(lane);
    } else {
      group_of[lane] = group_of[same_as[lane]];
    }
  }
}

void Groups::sort_as_laid(at::TensorList tensors) {
  for (const size_t lane : first) {
    if (!tensors[lane].is_alias_of(tensors[first[0]])) return;
  }
  std::vector<size_t> lanes = first;
  std::stable_sort(lanes.begin(), lanes.end(), [&](size_t a, size_t b) {
    return tensors[a].storage_offset() < tensors[b].storage_offset();
  });
  if (lanes == first) return;
  for (size_t& group : group_of) {
    group =
        static_cast<size_t>(std::find(lanes.begin(), lanes.end(), first[group]) - lanes.begin());
  }
  first = std::move(lanes);
}

}  // namespace nsn::detail
