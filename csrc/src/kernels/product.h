#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <type_traits>

#include "kernels/panels.h"
#include "kernels/window.h"

// Products and convolutions with a weight in panels, float32.

namespace nsn::kernels {

/// What is done to each element z of a product: relu(scale * z + bias), each where it is there.
struct Epilogue {
  /// Of the output features, contiguous, or null.
  const float* scale = nullptr;
  const float* bias = nullptr;
  bool relu = false;
};

/// What a convolution reads, and what it keeps.
struct Image {
  const Window* window;
  /// Of so many output positions (down, right), at most `kPooledRows`, the largest is kept, NaN
  /// where one is; those behind the last whole pool are left out.
  std::array<int64_t, 2> pool = {1, 1};

  int64_t of_pool() const { return pool[0] * pool[1]; }
};
inline constexpr int64_t kPooledRows = 256;

/// y = epilogue(x W^T), or the convolution W * x.
struct Product {
  /// Matrix: (rows, in), `x_stride` elements from row to row. Convolution: (rows, H, W, in),
  /// contiguous, a row being a sample.
  const float* x;
  int64_t x_stride, rows, in;
  /// (out, in), or (out, in, taps).
  const Panels* weight;
  Epilogue epilogue;
  /// (rows, out), or (rows, positions or pools, out); `y_stride` elements from one to the next.
  float* y;
  int64_t y_stride;
  /// Null for a matrix.
  const Image* image = nullptr;
};

/// A reference to what is called with (begin, end); made without memory of its own, and valid as
/// long as that.
class Task {
 public:
  template <typename Function>
    requires(!std::is_same_v<Function, Task>)
  Task(const Function& function)  // NOLINT(google-explicit-constructor)
      : function_(&function), call_([](const void* own, int64_t begin, int64_t end) {
          (*static_cast<const Function*>(own))(begin, end);
        }) {}

  void operator()(int64_t begin, int64_t end) const { call_(function_, begin, end); }

 private:
  const void* function_;
  void (*call_)(const void* own, int64_t begin, int64_t end);
};

/// Calls a task for parts [begin, end) of [0, count), no smaller than `grain` but for the last, on
/// one thread or on several at once, and returns when all is done.
using ParallelFor = std::function<void(int64_t count, int64_t grain, const Task& task)>;

/// All of a task at once, on the thread that asks.
inline void serially(int64_t count, int64_t /*grain*/, const Task& task) {
  if (count > 0) task(0, count);
}

void run(const Product& product, const ParallelFor& parallel_for);

}  // namespace nsn::kernels
