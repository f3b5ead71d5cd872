#pragma once

#include <cstdint>

namespace nsn::functional {

/// Dropout of one lane: the probability that an element is dropped, and the key of its mask.
struct Dropout {
  double probability = 0.0;
  uint64_t key = 0;
};

}  // namespace nsn::functional
