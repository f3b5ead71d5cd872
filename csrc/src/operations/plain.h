#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <string>

namespace nsn::detail {

/// Throws c10::TypeError, naming `function` and `parameter`, for a tensor whose memory cannot be
/// read as its elements, one behind the other: sparse, quantized, meta, or a wrapper of other
/// tensors.
inline void check_plain(const at::Tensor& tensor, const std::string& parameter,
                        const std::string& function) {
  const bool wraps = tensor.unsafeGetTensorImpl()->key_set().has_any(
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::FuncTorchBatched}));
  const bool is_plain = tensor.layout() == at::kStrided && !tensor.is_meta() &&
                        !tensor.is_quantized() && !wraps && tensor.has_storage();
  TORCH_CHECK_TYPE(is_plain, "nsn::", function, ": parameter '", parameter, "' is a ",
                   tensor.toString(),
                   ", which has no plain memory to read. Make a plain tensor of it "
                   "first, for example with to_dense() or dequantize().");
}

/// Whether all elements of a dense tensor lie in its storage, which may have been made smaller, or
/// not be there.
inline bool ends_in_storage(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return true;
  if (!tensor.has_storage()) return false;
  int64_t last = tensor.storage_offset();
  for (const int64_t dim : c10::irange(tensor.dim())) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  return (last + 1) * static_cast<int64_t>(tensor.element_size()) <=
         static_cast<int64_t>(tensor.storage().nbytes());
}

}  // namespace nsn::detail
