#pragma once

#include <ATen/Parallel.h>

#include "kernels/product.h"

namespace nsn::detail {

/// at::parallel_for for kernels.
inline void parallel_for(int64_t count, int64_t grain, const kernels::Task& task) {
  at::parallel_for(0, count, grain, task);
}

}  // namespace nsn::detail
