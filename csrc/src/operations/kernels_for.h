#pragma once

#include <ATen/core/Tensor.h>

#include "nsn/visibility.h"

// Whether nsn's own kernels take a tensor: asked here alone, so that kernels of another device
// would be known here.

namespace nsn::detail {

/// Whether this thread is told to do without kernels of its own (functional::PlainGuard).
bool plain_forced();

/// Whether there are kernels where the tensor is: on the CPU, unless the thread is told otherwise.
inline bool has_kernels_there(const at::Tensor& tensor) {
  return tensor.device().is_cpu() && !plain_forced();
}

/// Whether there are kernels for products, convolutions and norms of it: of float32.
inline bool has_kernels(const at::Tensor& tensor) {
  return has_kernels_there(tensor) && tensor.scalar_type() == at::kFloat;
}

}  // namespace nsn::detail
