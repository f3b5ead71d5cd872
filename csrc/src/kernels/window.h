#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

// Passes over windows of images that lie as (height, width, channels), one sample, but for borders,
// float32.

namespace nsn::kernels {

/// Where a window lies: for output position (h, w) and tap (i, j) it reads input position
/// h * stride + i * dilation - padding.
struct Window {
  std::array<int64_t, 2> in_size, out_size, kernel, stride, padding;
  std::array<int64_t, 2> dilation = {1, 1};

  /// Where the last window ends: of the positions that it reads none is at or behind this one.
  int64_t end(size_t d) const {
    return (out_size[d] - 1) * stride[d] - padding[d] + (kernel[d] - 1) * dilation[d] + 1;
  }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t inputs() const { return in_size[0] * in_size[1]; }
  int64_t outputs() const { return out_size[0] * out_size[1]; }
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

/// Images with zeros around them: lines [begin, end) of those of all samples, which are (out_size,
/// channels); the input (in_size, channels) begins at position `before`.
struct Border {
  std::array<int64_t, 2> in_size, out_size, before;
  int64_t channels, begin, end;
  const float* x;
  float* y;
  /// What is around them; no constant, which compilers would make a call of memset for, whatever
  /// the number of channels.
  float zero = 0.0F;
};
void run(const Border& pass);

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
