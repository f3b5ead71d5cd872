#pragma once

#include <tuple>
#include <type_traits>

#include "plan/plan.h"

namespace nsn::plan {

/// The members of a kernel, an epilogue or a window in the order in which files hold them: a tuple
/// of references. Calls hold what a file cannot.
template <typename Struct>
auto fields_of(Struct& s) {
  using T = std::remove_const_t<Struct>;
  if constexpr (std::is_same_v<T, Window>) {
    return std::tie(s.in_size, s.out_size, s.kernel, s.stride, s.padding, s.dilation);
  } else if constexpr (std::is_same_v<T, Epilogue>) {
    return std::tie(s.scale, s.shift, s.function, s.residual, s.after);
  } else if constexpr (std::is_same_v<T, Multiply>) {
    return std::tie(s.rows, s.in, s.out, s.weight, s.epilogue);
  } else if constexpr (std::is_same_v<T, Convolve>) {
    return std::tie(s.window, s.in, s.out, s.groups, s.weight, s.epilogue, s.pool);
  } else if constexpr (std::is_same_v<T, ConvolveTransposed>) {
    return std::tie(s.window, s.in, s.out, s.weight, s.epilogue);
  } else if constexpr (std::is_same_v<T, Pool>) {
    return std::tie(s.window, s.channels, s.is_max);
  } else if constexpr (std::is_same_v<T, GlobalAverage>) {
    return std::tie(s.positions, s.channels);
  } else if constexpr (std::is_same_v<T, Upsample>) {
    return std::tie(s.in_size, s.factor, s.channels, s.is_bilinear);
  } else if constexpr (std::is_same_v<T, NormalizeRows>) {
    return std::tie(s.rows, s.columns, s.eps, s.centred, s.weight, s.bias);
  } else if constexpr (std::is_same_v<T, NormalizeGroups>) {
    return std::tie(s.positions, s.channels, s.groups, s.eps, s.weight, s.bias);
  } else if constexpr (std::is_same_v<T, ScaleAndShift>) {
    return std::tie(s.outer, s.extent, s.inner, s.scale, s.shift);
  } else if constexpr (std::is_same_v<T, Apply>) {
    return std::tie(s.count, s.function);
  } else if constexpr (std::is_same_v<T, Gate>) {
    return std::tie(s.outer, s.extent, s.inner, s.function);
  } else if constexpr (std::is_same_v<T, Add>) {
    return std::tie(s.count, s.tensor);
  } else if constexpr (std::is_same_v<T, Pad>) {
    return std::tie(s.outer, s.before, s.count);
  } else if constexpr (std::is_same_v<T, Transpose>) {
    return std::tie(s.rows, s.columns);
  } else if constexpr (std::is_same_v<T, Copy>) {
    return std::tie(s.count);
  } else if constexpr (std::is_same_v<T, Embed>) {
    return std::tie(s.count, s.columns, s.rows, s.table);
  } else if constexpr (std::is_same_v<T, Attend>) {
    return std::tie(s.positions, s.heads, s.head_dim, s.causal);
  } else {
    static_assert(std::is_same_v<T, Call>);
    return std::tie();
  }
}

}  // namespace nsn::plan
