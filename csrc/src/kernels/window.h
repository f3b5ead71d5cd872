#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

// Passes over windows of images that lie as (height, width, channels), one sample, float32.

namespace nsn::kernels {

/// Where a window lies: for output position (h, w) and tap (i, j) it reads input position
/// h * stride + i * dilation - padding.
struct Window {
  std::array<int64_t, 2> in_size, out_size, kernel, stride, padding;
  std::array<int64_t, 2> dilation = {1, 1};

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t inputs() const { return in_size[0] * in_size[1]; }
  int64_t outputs() const { return out_size[0] * out_size[1]; }
};

/// a / b, where b is 1 most of the time, and a division would take as long as a dozen additions.
constexpr int64_t quotient(int64_t a, int64_t b) { return b == 1 ? a : a / b; }

/// The taps of a window that lie inside, in one dimension: so many, from the one `first` on, which
/// reads the input at `place`.
struct Inside {
  int64_t first, count, place;

  Inside(const Window& at, size_t d, int64_t output)
      : first(0), count(at.kernel[d]), place(output * at.stride[d] - at.padding[d]) {
    const int64_t step = at.dilation[d];
    if (place < 0) {
      first = std::min(count, quotient(step - 1 - place, step));
      place += first * step;
      count -= first;
    }
    const int64_t room = at.in_size[d] - 1 - place;  // behind the first
    if ((count - 1) * step > room) count = room < 0 ? 0 : quotient(room, step) + 1;
  }
};

/// The largest element of a window, or the mean, which counts padding as zeros.
struct PoolWindow {
  Window window;
  int64_t channels;
  bool is_max;
  const float* x;
  float* y;
};
void run(const PoolWindow& pass);

/// Convolution in groups. Weight: (taps, packed_in, packed_out), of which the leading in / groups
/// and out are meant; the features of a group lie beside each other.
struct GroupedConvolution {
  Window window;
  int64_t in, out, groups, packed_in, packed_out;
  const float *x, *weight;
  float* y;
};
void run(const GroupedConvolution& pass);

/// Transposed convolution: the window is that of the convolution whose transpose it is, which goes
/// from (out_size, out) to (in_size, in). Weight: (taps, packed_in, packed_out).
struct TransposedConvolution {
  Window window;
  int64_t in, out, packed_in, packed_out;
  const float *x, *weight;
  float* y;
};
void run(const TransposedConvolution& pass);

/// The mean over positions: (positions, channels) to (channels).
struct MeanOfPositions {
  int64_t positions, channels;
  const float* x;
  float* y;
};
void run(const MeanOfPositions& pass);

/// (height, width, channels) to `factor` times as many each way, as torch's Upsample with
/// align_corners = false.
struct Enlarge {
  std::array<int64_t, 2> in_size;
  int64_t factor, channels;
  bool is_bilinear;
  const float* x;
  float* y;
};
void run(const Enlarge& pass);

}  // namespace nsn::kernels
