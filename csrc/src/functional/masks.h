#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "nsn/functional/relu_dropout.h"
#include "operations/autograd.h"

// What functional::linear and functional::relu_dropout share: the element-wise part, and its
// backward.

namespace nsn::detail {

/// What is left of ReLU and dropout for the backward: one mask and scale a lane. A mask is packed
/// into words by nsn's kernels, or a bool tensor by ATen operations.
struct Masks {
  std::vector<at::Tensor> masks;
  /// Where a lane has the leading columns of a wider lane's result, of ReLU alone, they stand in
  /// for a mask of its own.
  std::vector<at::Tensor> outputs;
  std::vector<double> scales;
  std::shared_ptr<Workspace> workspace;
};

/// `options` with what is left out filled in, for so many lanes: no dropout, and each lane by
/// itself. Throws c10::ValueError where there are other numbers of them than lanes.
functional::ReluDropout checked_options(functional::ReluDropout options, size_t lanes);

/// For saved tensors: the masks' tensors behind those in `saved`, and `masks` without them; and
/// back, from place `first` on. `save_for_backward` frees them when the backward is done, and shows
/// them to hooks.
void move_to_saved(Masks& masks, variable_list& saved);
Masks from_saved(const Masks& masks, const variable_list& saved, size_t first);

/// relu_dropout(x_l + bias) for each lane; not recorded. `masks`, where given, gets what backward
/// needs. With `in_place` the results of the kernels overwrite the inputs, which must then be
/// contiguous, and different for lanes of different results.
variable_list relu_dropout_forward(at::TensorList inputs, const at::Tensor& bias,
                                   const functional::ReluDropout& options,
                                   const functional::Memory& memory, bool in_place, Masks* masks);

/// The lanes' gradients before ReLU and dropout from those behind; undefined stays undefined.
/// Differentiable as often as wanted, since it is linear.
variable_list relu_dropout_backward(const Masks& masks, const variable_list& gradients);

}  // namespace nsn::detail
