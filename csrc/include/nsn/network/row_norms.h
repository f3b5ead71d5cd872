#pragma once

#include <string>
#include <vector>

#include <nsn/network/parameter_table.h>
#include <nsn/visibility.h>

namespace nsn {

/// Scales the rows of the weights of `blocks` (those inside them too) whose 2-norm is above `most`
/// down to it: what feeds one output feature, of a convolution one filter. For after each step of
/// an optimizer (Srivastava et al., "Dropout", 2014, max-norm regularization). A narrower
/// sub-network reads a part of a row, whose norm is no larger.
///
///     nsn::bound_row_norms(net->parameter_table(), 2.5, {"hidden1", "hidden2"});
///
/// Throws c10::ValueError for a bound that is not positive, for a name that is no block or has no
/// weight, and for a weight that is computed from another tensor, which would forget it.
NSN_API void bound_row_norms(const ParameterTable& network, double most,
                             const std::vector<std::string>& blocks);

}  // namespace nsn
