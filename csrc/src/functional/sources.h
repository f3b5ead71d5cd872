#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nsn/functional/linear.h"

// Which lanes of an operation one forward serves.

namespace nsn::detail {

/// Lanes of one input, whose results are the leading features of the widest's.
struct Source {
  std::vector<size_t> lanes;
  size_t widest;  // the lane whose slice the operation takes
};

/// The sources of an operation, in the order of their first lanes.
std::vector<Source> sources_of(const functional::SharedLanes& lanes);

/// What a function that lanes share is given, checked: throws c10::ValueError, naming `operation`,
/// where inputs, lanes, slices, weight (out, in, *) and bias (out) do not belong together. `dims`
/// is the weight's number of dimensions, and the input's where `channel_dim` is 1; -1 is the last
/// one. Gives tensors without lazy signs.
struct ProductOperands {
  std::vector<at::Tensor> inputs;
  at::Tensor weight, bias;
};
ProductOperands checked_operands(at::TensorList inputs, const at::Tensor& weight,
                                 const at::Tensor& bias, const functional::SharedLanes& lanes,
                                 int64_t dims, int64_t channel_dim, const char* operation);

/// The lanes' slices of a weight (out, ...) and of a bias (out), as views, and the extents that
/// each lane keeps of the weight.
struct LaneViews {
  SliceView weight, bias;
  std::vector<Shape> kept;
};

/// Throws c10::ValueError, naming `operation`, where the slices have no common view.
LaneViews views_of(const at::Tensor& weight, const functional::SharedLanes& lanes,
                   const char* operation);

}  // namespace nsn::detail
