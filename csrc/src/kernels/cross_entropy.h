#pragma once

#include <cstdint>

namespace nsn::kernels {

/// -log softmax(logits)[target] of one row of float32, and its gradient times `scale`:
/// scale * (softmax(logits) - one_hot(target)). logits, gradient: (classes), contiguous.
double row_cross_entropy(const float* logits, float* gradient, int64_t classes, int64_t target,
                         double scale);

}  // namespace nsn::kernels
