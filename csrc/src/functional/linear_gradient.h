#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "functional/linear_forward.h"

// The backward of functional::linear: what the lanes' gradients become in the shared parameters.

namespace nsn::detail {

/// What the lanes bring to a weight's gradient: rows of dY, undefined where there is none, and of
/// X.
struct LaneRows {
  std::vector<at::Tensor> dy, x;
};

/// The merged gradient of a weight of `shape`: rule(dY_l^T X_l).
at::Tensor merge_weight(const LinearSpec& spec, const Shape& shape, const LaneRows& rows,
                        const at::TensorOptions& options);

/// The merged gradient of a bias: rule(the sum over dY_l's rows).
at::Tensor merge_bias(const LinearSpec& spec, int64_t features, const LaneRows& rows);

}  // namespace nsn::detail
