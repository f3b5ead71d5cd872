#pragma once

#include <string>
#include <string_view>

namespace nsn::run {

/// How many bytes the character of UTF-8 has that a text begins with; 0 where there is none.
inline size_t character_at(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  const size_t size = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (first > 0xF4 || size > text.size()) return 0;
  for (size_t i = 1; i < size; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0U) != 0x80) return 0;
  }
  // Written longer than it has to be, half of a pair of UTF-16, or behind the last character.
  const auto second = size < 3 ? 0U : static_cast<unsigned char>(text[1]);
  const bool is_none = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                       (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
  return is_none ? 0 : size;
}

/// A text for a terminal, which would obey what a file names things: control characters, and what
/// is no UTF-8, as \x1b.
inline std::string printable(std::string_view text) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string result;
  while (!text.empty()) {
    const size_t size = character_at(text);
    const auto first = static_cast<unsigned char>(text[0]);
    // U+0080 to U+009f are control characters too.
    const bool is_control = size == 1 ? first < 0x20 || first == 0x7F
                                      : first == 0xC2 && static_cast<unsigned char>(text[1]) < 0xA0;
    const std::string_view part = text.substr(0, size == 0 ? 1 : size);
    text.remove_prefix(part.size());
    if (size != 0 && !is_control) {
      result += part;
      continue;
    }
    for (const char each : part) {
      const auto byte = static_cast<unsigned char>(each);
      result += {'\\', 'x', kDigits[byte >> 4U], kDigits[byte & 15U]};
    }
  }
  return result;
}

}  // namespace nsn::run
