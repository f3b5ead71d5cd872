#pragma once

#include <cstdint>

// Passes over activations in inference, float32.

namespace nsn::kernels {

enum class Function { kRelu, kGelu, kSilu, kSigmoid, kTanh };

/// out = function(x), or with `times` out = times * function(x). `out` may be `x` or `times`.
struct Apply {
  Function function;
  const float* x;
  const float* times;
  int64_t count;
  float* out;
};
void run(const Apply& pass);

/// out = a + b. `out` may be `a` or `b`.
struct Sum {
  const float *a, *b;
  int64_t count;
  float* out;
};
void run(const Sum& pass);

/// out = scale * x + shift for each of some rows; scale or shift may be null. `out` may be `x`.
struct ScaleRows {
  int64_t rows, columns;
  const float *x, *scale, *shift;
  float* out;
};
void run(const ScaleRows& pass);

}  // namespace nsn::kernels
