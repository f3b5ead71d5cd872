#include "operations/lanes.h"

#include <ATen/ops/cat.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <utility>

#include "operations/workspace.h"

namespace nsn::detail {

at::Tensor part(const at::Tensor& buffer, int64_t first, at::IntArrayRef sizes) {
  at::Tensor result = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(buffer.storage()),
                                                               buffer.key_set(), buffer.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_storage_offset(buffer.storage_offset() + first);
  impl->set_sizes_contiguous(sizes);
  return result;
}

at::Tensor part(const at::Tensor& buffer, int64_t first, at::IntArrayRef sizes,
                at::IntArrayRef strides) {
  at::Tensor result = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(buffer.storage()),
                                                               buffer.key_set(), buffer.dtype());
  auto* impl = result.unsafeGetTensorImpl();
  impl->set_storage_offset(buffer.storage_offset() + first);
  impl->set_sizes_and_strides(sizes, strides);
  return result;
}

bool is_spare(const at::Tensor& tensor) {
  return tensor.use_count() == 1 && !tensor.is_view() && tensor.has_storage() &&
         tensor.storage().use_count() == 1;
}

at::Tensor own_memory(at::Tensor tensor) {
  const bool is_alone = is_spare(tensor) && tensor.storage().nbytes() == tensor.nbytes();
  return is_alone ? tensor : tensor.clone();
}

LaneBuffer::LaneBuffer(const functional::Memory& memory, int64_t numel,
                       const at::TensorOptions& options)
    : buffer_(empty_in(memory, {numel}, options)) {}

int64_t LaneBuffer::numel_of(at::TensorList tensors) {
  int64_t result = 0;
  for (const at::Tensor& tensor : tensors) result += tensor.defined() ? tensor.numel() : 0;
  return result;
}

at::Tensor LaneBuffer::next(at::IntArrayRef sizes) {
  at::Tensor result = part(buffer_, used_, sizes);
  used_ += result.numel();
  return result;
}

std::vector<at::Tensor> split_as(const at::Tensor& buffer, at::TensorList like) {
  std::vector<at::Tensor> result;
  int64_t first = 0;
  for (const at::Tensor& each : like) {
    result.push_back(each.defined() ? part(buffer, first, each.sizes()) : at::Tensor());
    first += each.defined() ? each.numel() : 0;
  }
  return result;
}

at::Tensor along(const at::Tensor& vector, int64_t dim, const at::Tensor& like) {
  std::vector<int64_t> sizes(static_cast<size_t>(like.dim()), 1);
  sizes[static_cast<size_t>(dim < 0 ? dim + like.dim() : dim)] = vector.numel();
  return vector.reshape(sizes);
}

at::Tensor as_rows(const at::Tensor& tensor) {
  const auto are_rows = [](const at::Tensor& matrix) {
    return matrix.dim() == 2 && (matrix.stride(1) == 1 || matrix.size(1) == 1) &&
           matrix.stride(0) >= matrix.size(1);
  };
  if (are_rows(tensor)) return tensor;
  const int64_t columns = tensor.size(-1);
  const at::Tensor matrix = tensor.reshape({columns == 0 ? 0 : tensor.numel() / columns, columns});
  return are_rows(matrix) ? matrix : matrix.contiguous();
}

at::Tensor stack_rows(const std::vector<at::Tensor>& matrices) {
  if (matrices.size() == 1) return matrices[0];
  const int64_t columns = matrices[0].size(1);
  int64_t rows = 0;
  bool adjacent = true;
  for (const at::Tensor& matrix : matrices) {
    adjacent = adjacent && matrix.is_contiguous() && matrix.is_alias_of(matrices[0]) &&
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

}  // namespace nsn::detail

namespace nsn {

bool Lanes::is_spare(size_t lane) const { return detail::is_spare(tensors_[lane]); }

at::Tensor Lanes::lay_behind(const at::Tensor& x, functional::Room room) const {
  const at::Tensor& behind = room.behind;
  const bool fits = behind.defined() && behind.is_alias_of(tensors_[0]) &&
                    behind.numel() == x.numel() && behind.dtype() == x.dtype();
  if (!fits) return {};
  const at::Tensor laid = detail::part(behind, 0, x.sizes());
  laid.copy_(x);
  return laid;
}

std::vector<at::Tensor> Lanes::for_caller() && {
  for (at::Tensor& tensor : tensors_) tensor = detail::own_memory(std::move(tensor));
  return std::move(tensors_);
}

}  // namespace nsn
