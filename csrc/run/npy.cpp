#include "npy.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace nsn::run {

namespace {

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicSize = 6;

/// The text behind a key of the header, "'descr': '<f4', ...".
std::string behind(const std::string& header, const std::string& key, const std::string& path) {
  const size_t at = header.find("'" + key + "':");
  if (at == std::string::npos) throw std::runtime_error("'" + path + "' is no .npy: no " + key);
  return header.substr(header.find_first_not_of(' ', at + key.size() + 3));
}

}  // namespace

Array read_array(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error("cannot open '" + path + "'");
  Array result;
  result.bytes.assign(std::istreambuf_iterator<char>(stream), {});
  auto& bytes = result.bytes;
  if (bytes.size() < kMagicSize + 4 || std::memcmp(bytes.data(), kMagic, kMagicSize) != 0) {
    return result;
  }
  // Versions 2 and 3 have a length of four bytes.
  const size_t words = bytes[kMagicSize] == 1 ? 2 : 4;
  const size_t begin = kMagicSize + 2 + words;
  if (bytes.size() < begin) throw std::runtime_error("'" + path + "' is cut");
  size_t length = 0;
  for (size_t i = words; i-- > 0;) {
    length = length << 8U | static_cast<unsigned char>(bytes[kMagicSize + 2 + i]);
  }
  if (length > bytes.size() - begin) throw std::runtime_error("'" + path + "' is cut");
  const std::string header(bytes.data() + begin, length);
  const std::string type = behind(header, "descr", path);
  result.is_npy = true;
  result.is_integral = type.rfind("'<i8'", 0) == 0;
  if (!result.is_integral && type.rfind("'<f4'", 0) != 0) {
    throw std::runtime_error("'" + path + "' holds " + type.substr(0, type.find(',')) +
                             ", and must hold '<f4' or '<i8': save it as float32 or int64");
  }
  if (behind(header, "fortran_order", path).rfind("False", 0) != 0) {
    throw std::runtime_error("'" + path + "' lies in Fortran's order: save a C-contiguous array");
  }
  const std::string shape = behind(header, "shape", path);
  for (size_t at = 1; at < shape.size() && shape[at] != ')';) {
    size_t used = 0;
    if (shape[at] == ',' || shape[at] == ' ') {
      ++at;
      continue;
    }
    result.shape.push_back(std::stoll(shape.substr(at), &used));
    at += used;
  }
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(begin + length));
  return result;
}

void write_array(const std::string& path, const std::vector<int64_t>& shape,
                 const std::vector<float>& numbers) {
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  if (path.size() > 4 && path.compare(path.size() - 4, 4, ".npy") == 0) {
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
    for (const int64_t extent : shape) header += std::to_string(extent) + ", ";
    header += "), }";
    header.resize((kMagicSize + 4 + header.size() + 64) / 64 * 64 - kMagicSize - 5, ' ');
    header += '\n';
    stream.write(kMagic, kMagicSize);
    const unsigned char sizes[] = {1, 0, static_cast<unsigned char>(header.size() & 255U),
                                   static_cast<unsigned char>(header.size() >> 8U)};
    stream.write(reinterpret_cast<const char*>(sizes), sizeof sizes);
    stream << header;
  }
  stream.write(reinterpret_cast<const char*>(numbers.data()),
               static_cast<std::streamsize>(numbers.size() * sizeof(float)));
  stream.close();
  if (!stream) throw std::runtime_error("cannot write '" + path + "'");
}

}  // namespace nsn::run
