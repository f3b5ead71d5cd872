#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <vector>

#include "nsn/blocks/block.h"
#include "nsn/blocks/lowering.h"
#include "nsn/blocks/parts.h"

// What norms have in common: a weight and a bias for each feature, and the features' axis.

namespace nsn::detail {

/// "weight" and, where wanted, "bias", private or not.
std::vector<ParameterSpec> affine(int64_t features, bool has_bias, const Parts& own);

/// As many of them as there are, as a step reads them.
std::vector<Operand> affine_operands(Lowering& to, size_t count);

/// weight 1 and bias 0.
void start_affine(at::TensorList parameters, bool has_bias);

/// How a norm over the first dimension, called `name`, fits.
Fit fit_first(const Signal& input, const BlockUse& use, int64_t features, size_t parameters,
              const char* name);

}  // namespace nsn::detail
