#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include <nsn/operations/dropout.h>
#include <nsn/operations/memory.h>
#include <nsn/visibility.h>

namespace nsn::functional {

/// What is done to each element of each lane.
struct ReluDropout {
  bool relu = false;
  /// One for each lane.
  std::vector<Dropout> dropout;
  /// Lanes that carry the same activations share one forward: `same_as[l]` is the first lane whose
  /// result is lane l's too, l itself if there is none before it.
  std::vector<size_t> same_as;

  /// Whether it leaves all elements as they are.
  bool is_identity() const;
};

/// y_l = relu(x_l) (or x_l itself), then each element dropped with probability p_l and the others
/// scaled by 1 / (1 - p_l), in one pass over memory. The mask is kept as bits. NaN passes through
/// the ReLU. x_l, y_l: any shape.
NSN_API std::vector<at::Tensor> relu_dropout(at::TensorList inputs, const ReluDropout& options,
                                             const Memory& memory = {});

/// The mask that `relu_dropout` applies: a bool tensor of `shape`, true where an element is kept.
/// Depends on the key, the probability and each element's index alone, not on threads; p = 0 keeps
/// and p = 1 drops all.
NSN_API at::Tensor dropout_mask(at::IntArrayRef shape, const Dropout& dropout);

}  // namespace nsn::functional
