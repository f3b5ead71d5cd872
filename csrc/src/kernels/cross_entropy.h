#pragma once

#include <cstdint>

namespace nsn::kernels {

/// The logarithm of a sum of exponentials: factor * largest + rest. Far from zero the two cannot be
/// added before something is taken from the former.
struct LogSum {
  double largest, rest;
};

/// probabilities = softmax(factor * logits) of one row of float32, and the logarithm of the sum of
/// exp(factor * logits). logits, probabilities: (classes), contiguous; factor > 0.
LogSum row_softmax(const float* logits, float* probabilities, int64_t classes, float factor);

}  // namespace nsn::kernels
