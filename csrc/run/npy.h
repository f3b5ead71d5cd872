#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nsn::run {

/// An array of a file: NumPy's .npy (float32 or int64, in C order), or else raw numbers, whose
/// shape is unknown.
struct Array {
  bool is_npy = false, is_integral = false;
  std::vector<int64_t> shape;
  std::vector<char> bytes;
};

/// Throws std::runtime_error, which names the file.
Array read_array(const std::string& path);

/// Writes float32, as .npy where the path ends so, and else raw. A file holds all of it, or where
/// that fails what it held. Throws std::runtime_error, which names it.
void write_array(const std::string& path, const std::vector<int64_t>& shape,
                 const std::vector<float>& numbers);

}  // namespace nsn::run
