#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>
#include <string>

#include "kernels/mix.h"
#include "nsn/blocks/block.h"
#include "values/regions.h"

namespace nsn::detail {

/// What `layout` keeps of a tensor, with one dimension for each axis: a view where what is kept is
/// leading, else a copy.
inline at::Tensor slice_of(const at::Tensor& tensor, const Layout& layout) {
  const auto view = common_view({&layout});
  return merge::slice_of_view(tensor, view->view, view->slices[0], kept_shape(layout));
}

/// The way behind a block, from the way before it, the block's place among its neighbours, and how
/// the sub-network keeps it. Where a sub-network has private parts, nobody goes its way.
inline uint64_t next_way(uint64_t way, size_t place, const Fit& fit, bool has_private_parts,
                         size_t subnetwork) {
  const auto bits = [](double value) {
    uint64_t result = 0;
    std::memcpy(&result, &value, sizeof result);
    return result;
  };
  uint64_t next = mix(mix(way, place), bits(fit.use.dropout.value_or(-1.0)));
  for (const auto& [dimension, count] : fit.use.width) {
    for (const char letter : dimension) next = mix(next, static_cast<unsigned char>(letter));
    next = mix(next, static_cast<uint64_t>(count));
  }
  return has_private_parts ? mix(next, subnetwork + 1) : next;
}

inline bool has_private_parts(const std::vector<ParameterSpec>& parameters) {
  for (const ParameterSpec& parameter : parameters) {
    if (parameter.per_subnetwork) return true;
  }
  return false;
}

}  // namespace nsn::detail
