#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "nsn/blocks/block.h"
#include "nsn/blocks/parts.h"
#include "nsn/blocks/weight_init.h"
#include "nsn/functional/activation.h"
#include "nsn/functional/linear.h"
#include "nsn/functional/relu_dropout.h"
#include "values/counts.h"

// What the blocks' implementations have in common.

namespace nsn::detail {

/// What a block that reads `declared` features keeps of them for this axis of its input: the axis
/// itself where it is `declared` wide at full width, all where it is exactly as wide as declared.
/// Nothing where neither fits.
std::optional<Axis> reads(const Axis& axis, int64_t declared);

/// The axis of outputs of a weight: gated ones are two halves.
Axis rows_axis(const Axis& out, bool gated);

/// The lanes that share parameter `p`, with their slices where one is narrower than all.
functional::SharedLanes shared_lanes(const BlockPass& pass, size_t p,
                                     std::vector<size_t> same_as = {});

/// The dropout of each lane in this pass: its sub-network's in place of the block's own,
/// `standard`, and no dropout at all where that is none.
functional::ReluDropout dropout_of(std::optional<double> standard, const BlockPass& pass);

/// Each lane's elements dropped as its sub-network wants.
Lanes drop(Lanes y, std::optional<double> standard, const BlockPass& pass);

/// Fills as torch::nn::Linear and convolutions are: weight and bias by the fan in.
void initialize_layer(const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& scale,
                      WeightInit init, std::optional<double> bias_init, int64_t fan_in,
                      int64_t fan_out);

/// How a channel axis that is made of groups is kept: so many groups from the front, so many
/// channels of each. Nothing where the axis is cut otherwise.
struct GroupCut {
  int64_t groups, channels;
};
std::optional<GroupCut> cut_groups(const Axis& axis, int64_t groups);

/// What `block` makes of `input`, a signal of at most 2^60 elements; throws a Misfit where more
/// come out.
Fit checked_fit(const Block& block, const Signal& input, const BlockUse& use);

}  // namespace nsn::detail
