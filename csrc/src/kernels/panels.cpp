#include "kernels/panels.h"

#include <algorithm>

namespace nsn::kernels {

void fill_panels(const WeightSource& weight, float* box) {
  const auto [out, in, taps] = weight.sizes;
  const auto [from_out, from_in, from_tap] = weight.strides;
  for (int64_t first = 0; first < out; first += kPanel) {
    const int64_t width = panel_width(out - first), features = std::min(width, out - first);
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t tap = 0; tap < taps; ++tap, box += width) {
        const float* from = weight.data + first * from_out + i * from_in + tap * from_tap;
        for (int64_t f = 0; f < features; ++f) box[f] = from[f * from_out];
        std::fill(box + features, box + width, 0.0F);
      }
    }
  }
}

Panels::Panels(const std::vector<int64_t>& out_ends, const std::vector<int64_t>& in_ends,
               const std::vector<const void*>& boxes, WeightType type, int64_t taps, int64_t out,
               int64_t in)
    : type_(type) {
  const int64_t bytes = bytes_of(type);
  int64_t begin = 0;
  for (size_t i = 0; i < out_ends.size() && begin < out; begin = out_ends[i++]) {
    for (int64_t at = begin; at < std::min(out_ends[i], out); at += kPanel) {
      const int64_t width = panel_width(out_ends[i] - at);
      const int64_t features = std::min({width, out_ends[i] - at, out - at});
      panels_.push_back({at, features, width, nullptr, 0});
      int64_t first = 0;
      for (size_t j = 0; j < in_ends.size() && first < in; first = in_ends[j++]) {
        const int64_t inner = in_ends[j] - first;
        const auto* box = static_cast<const char*>(boxes[i * in_ends.size() + j]);
        segments_.push_back(
            {box + (at - begin) * inner * taps * bytes, std::min(inner, in - first)});
        ++panels_.back().segment_count;
      }
    }
  }
  const Segment* next = segments_.data();
  for (Panel& panel : panels_) {
    panel.segments = next;
    next += panel.segment_count;
  }
}

}  // namespace nsn::kernels
