#pragma once

#include <cstdint>

namespace nsn::detail {

/// Mixes a seed and a place into a word whose bits all depend on both: the finaliser of SplitMix64
/// (Steele, Lea and Flood, OOPSLA 2014) over one Weyl step a place.
inline uint64_t mix(uint64_t seed, uint64_t place) {
  uint64_t z = seed + (place + 1) * 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

}  // namespace nsn::detail
