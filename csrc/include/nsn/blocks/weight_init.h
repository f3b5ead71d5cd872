#pragma once

#include <string>

#include <nsn/visibility.h>

namespace nsn {

/// How weights start.
enum class WeightInit {
  /// U(-a, a) with a = 1 / sqrt(fan_in), as torch::nn::Linear.
  kKaimingUniform,
  /// U(-a, a) with a = sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio, 2010).
  kXavierUniform,
};

/// "kaiming_uniform", ...: the names that JSON and Python use.
NSN_API std::string to_string(WeightInit init);

/// The inverse of `to_string`; throws c10::ValueError that lists the names.
NSN_API WeightInit weight_init_from_string(const std::string& name);

}  // namespace nsn
