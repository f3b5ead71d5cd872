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

/// x = softmax(factor * x) of rows of scores, one behind the other, in place. Of the first row the
/// first `seen` columns count, and of each next one `more` more; zeros are written to the others.
struct SoftmaxRows {
  int64_t rows, columns, seen, more;
  float factor;
  float* x;
};
void run(const SoftmaxRows& pass);

}  // namespace nsn::kernels
