#include "kernels/weight_type.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/bit_cast.h"

namespace nsn::kernels {

namespace {

/// Rounds away the lowest bits, ties to even.
uint32_t without_lowest(uint32_t bits, int count) {
  const uint32_t half = uint32_t{1} << (count - 1);
  return (bits + half - 1 + ((bits >> count) & 1U)) >> count;
}

// Both have the bits of a number's size, in float32's order; float16 has 5 of the exponent, whose
// bias is 15 in place of 127, and 10 behind them.
constexpr uint32_t kBias = (127 - 15) << 23;
/// Numbers of float16 below it lie 2^-24 apart.
constexpr float kLeastNormal = 0x1p-14F, kStep = 0x1p-24F;

uint16_t to_float16(float value) {
  const uint32_t sign = std::signbit(value) ? 0x8000U : 0U;
  const float size = std::fabs(value);
  const uint32_t bits = size < kLeastNormal ? static_cast<uint32_t>(std::nearbyint(size / kStep))
                                            : without_lowest(bit_cast<uint32_t>(size) - kBias, 13);
  return static_cast<uint16_t>(sign | bits);
}

float from_float16(uint16_t half) {
  const uint32_t bits = half & 0x7fffU;
  const float size =
      bits < 0x400U ? static_cast<float>(bits) * kStep : bit_cast<float>((bits << 13) + kBias);
  return (half & 0x8000U) != 0 ? -size : size;
}

template <typename T>
void put(T value, void* to) {
  std::memcpy(to, &value, sizeof value);
}

template <typename T>
T take(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

const char* name_of(WeightType type) {
  switch (type) {
    case WeightType::kFloat32:
      return "float32";
    case WeightType::kFloat16:
      return "float16";
    case WeightType::kBFloat16:
      return "bfloat16";
    default:
      return "int8";
  }
}

float largest(WeightType type) {
  switch (type) {
    case WeightType::kFloat32:
      return std::numeric_limits<float>::max();
    case WeightType::kFloat16:
      return 65504.0F;
    case WeightType::kBFloat16:
      return bit_cast<float>(0x7f7f0000U);
    default:
      return 127.0F;
  }
}

void store(WeightType type, float value, void* to) {
  switch (type) {
    case WeightType::kFloat32:
      return put(value, to);
    case WeightType::kFloat16:
      return put(to_float16(value), to);
    case WeightType::kBFloat16:
      return put(static_cast<uint16_t>(without_lowest(bit_cast<uint32_t>(value), 16)), to);
    default:
      return put(static_cast<int8_t>(std::nearbyint(std::clamp(value, -127.0F, 127.0F))), to);
  }
}

float load(WeightType type, const void* from) {
  switch (type) {
    case WeightType::kFloat32:
      return take<float>(from);
    case WeightType::kFloat16:
      return from_float16(take<uint16_t>(from));
    case WeightType::kBFloat16:
      return bit_cast<float>(uint32_t{take<uint16_t>(from)} << 16);
    default:
      return static_cast<float>(take<int8_t>(from));
  }
}

}  // namespace nsn::kernels
