#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include <nsn/export.h>
#include <nsn/merge.h>

// What lane-aware operations compute: a forward for several lanes at once, and a backward that
// merges the lanes' gradients of the shared parameter into one buffer while the gradients of the
// lanes' inputs stay unmerged. No state, no modules.
//
// Lanes that still carry the same activations (nothing has set them apart yet) share one forward:
// `same_as[l]` is the first lane whose input is lane l's too, l itself if there is none before it.
//
// Second derivatives work where the merged gradient is the gradient of one function: where each
// lane's coefficient is 1 (`sum`; a single lane under any rule but `weighted` and `function`).
// Elsewhere the first backward may be recorded (create_graph), and differentiating it throws.

namespace nsn::functional {

/// The primitive below all merging: one tensor for each lane, for the whole `parameter` or the
/// leading slices of it, to be used with any torch operation. Backward applies `rule` to the lanes'
/// gradients and writes one buffer of the parameter's shape; it is undefined if no lane's is there.
/// The results are views of `parameter`'s storage; do not modify them in place.
///
/// Throws c10::ValueError where a slice has another number of dimensions than the parameter, or an
/// extent below 1 or beyond the parameter's.
NSN_API std::vector<at::Tensor> share(const at::Tensor& parameter,
                                      c10::ArrayRef<merge::Slice> slices, const merge::Rule& rule,
                                      c10::ArrayRef<merge::Lane> lanes);

/// y_l = x_l W^T + b for each lane. x_l: (*, in), W: (out, in), b: (out) or undefined; y_l:
/// (*, out). Lanes are stacked into one matrix product; backward computes the merged gradient of W
/// as (c * dY)^T X in one product for a linear rule, leaving out lanes whose coefficient is zero.
/// Under autocast the products run in autocast's dtype; gradients come back in the parameters'.
NSN_API std::vector<at::Tensor> linear(at::TensorList inputs, const at::Tensor& weight,
                                       const at::Tensor& bias, c10::ArrayRef<size_t> same_as,
                                       c10::ArrayRef<merge::Lane> lanes, const merge::Rule& rule);

/// Dropout of one lane: the probability that an element is dropped, and the key of its mask.
struct Dropout {
  double probability = 0.0;
  uint64_t key = 0;
};

/// y_l = relu(x_l) (or x_l itself, where `relu` is false), then each element dropped with
/// probability p_l and the others scaled by 1 / (1 - p_l), in one pass over memory. The mask is
/// kept as bits. NaN passes through the ReLU.
NSN_API std::vector<at::Tensor> relu_dropout(at::TensorList inputs, bool relu,
                                             c10::ArrayRef<Dropout> dropout,
                                             c10::ArrayRef<size_t> same_as);

/// The same values and gradients as `relu_dropout`, from ATen operations alone: what runs on
/// devices other than the CPU. The mask is made on the CPU, so that it is the same everywhere.
NSN_API std::vector<at::Tensor> relu_dropout_plain(at::TensorList inputs, bool relu,
                                                   c10::ArrayRef<Dropout> dropout);

/// The mask that `relu_dropout` applies: a bool tensor of `shape`, true where an element is kept.
/// Depends on the key, the probability and each element's index alone, not on threads; p = 0 keeps
/// and p = 1 drops all.
NSN_API at::Tensor dropout_mask(at::IntArrayRef shape, const Dropout& dropout);

}  // namespace nsn::functional

namespace nsn {

/// functional::share for lanes of one's own. The smaller lane is the one with the smaller slice,
/// then the one given first. `names` tells them apart for `weighted` and function rules; default:
/// "0", "1", ...
///
///     auto lanes = nsn::share(weight, {{64, 64}, {32, 64}}, nsn::merge::mean());
///     auto wide = at::linear(x, lanes[0]), narrow = at::linear(x, lanes[1]);
NSN_API std::vector<at::Tensor> share(const at::Tensor& parameter,
                                      const std::vector<merge::Slice>& slices,
                                      const merge::Rule& rule,
                                      const std::vector<std::string>& names = {});

}  // namespace nsn
