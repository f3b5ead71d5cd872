#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include <nsn/values/layout.h>
#include <nsn/values/merge.h>
#include <nsn/visibility.h>

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

/// The same for slices that need not be leading, by what each lane keeps of the parameter. A lane
/// gets its slice with one dimension for each axis, of the extent that it keeps. A function rule
/// gets slices and gradients in the view that makes all of them leading (see `common_view`).
NSN_API std::vector<at::Tensor> share_layouts(const at::Tensor& parameter,
                                              const std::vector<const Layout*>& layouts,
                                              const merge::Rule& rule,
                                              c10::ArrayRef<merge::Lane> lanes);

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
