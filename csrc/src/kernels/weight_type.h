#pragma once

#include <cstdint>

namespace nsn::kernels {

/// What the weights of a product are held as; all is computed in float32. Of int8 a weight is that
/// times the scale of its output feature, which stands in the product's epilogue.
enum class WeightType { kFloat32, kFloat16, kBFloat16, kInt8 };

/// "float32", ...
const char* name_of(WeightType type);

constexpr int64_t bytes_of(WeightType type) {
  switch (type) {
    case WeightType::kFloat32:
      return 4;
    case WeightType::kInt8:
      return 1;
    default:
      return 2;
  }
}

/// The largest number that one can hold.
float largest(WeightType type);

/// Writes a number as the nearest one of a type, ties to even; it must be no larger than `largest`.
void store(WeightType type, float value, void* to);

/// The number that is there.
float load(WeightType type, const void* from);

}  // namespace nsn::kernels
