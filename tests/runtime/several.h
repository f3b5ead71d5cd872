#pragma once

#include <string>

#include "sample.h"

namespace nsn::test {

/// A file of twelve networks of random kernels, from 300 numbers to 10.
struct Several {
  explicit Several(const std::string& path) {
    Sample sample(7);
    for (int i = 0; i < 12; ++i) sample.network("net" + std::to_string(i), 300, 8);
    write(path, sample.bytes());
  }
};

}  // namespace nsn::test
