#pragma once

#include <cstdint>
#include <vector>

#include "sample.h"

namespace nsn::test {

/// What a sub-network of a sample computes for one sample, in plain loops and double precision,
/// from the definitions of the kernels (plan/plan.h) and nothing else: neither arenas nor panels
/// nor vectors. `input`: numbers too, where the plan embeds them.
std::vector<double> reference(const Sample& sample, size_t network,
                              const std::vector<double>& input);

}  // namespace nsn::test
