#pragma once

namespace nsn::kernels {

/// std::bit_cast, which not all standard libraries of C++20 have (emscripten 3.1 of Debian 12).
template <typename To, typename From>
constexpr To bit_cast(const From& from) noexcept {
  return __builtin_bit_cast(To, from);
}

}  // namespace nsn::kernels
