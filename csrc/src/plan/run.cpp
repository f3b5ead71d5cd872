#include "plan/run.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/cross_entropy.h"
#include "kernels/matrix_product.h"
#include "kernels/normalize.h"
#include "kernels/window.h"

namespace nsn::plan {

namespace {

/// Elements of a pass below which a second thread costs more than it brings.
constexpr int64_t kLeastElements = int64_t{1} << 15;

class Runner {
 public:
  Runner(const Plan& plan, const Run& run) : plan_(plan), run_(run) {}

  void step(const Step& step) {
    step_ = &step;
    x_ = step.inputs.empty() ? nullptr : read(step.inputs[0]);
    y_ = write(step.output);
    std::visit(*this, step.kernel);
  }

  void operator()(const Multiply& k) const {
    const Tensor& weight = tensor(k.weight);
    kernels::run(
        kernels::Product{x_, k.in, samples() * k.rows, k.in, k.out, weight.data, weight.packed_in,
                         weight.packed_out, fused(k.epilogue), y_, k.out},
        *run_.parallel_for);
    rest(k.epilogue, k.rows * k.out);
  }

  void operator()(const Convolve& k) const {
    const Tensor& weight = tensor(k.weight);
    if (k.groups > 1) {
      each_sample(in_size(k) * k.in, out_size(k) * k.out, window_work(k, k.in / k.groups * k.out),
                  [&](const float* x, float* y) {
                    kernels::run(kernels::GroupedConvolution{window(k), k.in, k.out, k.groups,
                                                             weight.packed_in, weight.packed_out, x,
                                                             weight.data, y});
                  });
      plain(k.epilogue, out_size(k), k.out);
      return;
    }
    thread_local std::vector<float> zeros;
    if (zeros.size() < static_cast<size_t>(k.in)) zeros.resize(static_cast<size_t>(k.in));
    const kernels::Positions positions{zeros.data(),  k.in_size[0], k.in_size[1], k.out_size[0],
                                       k.out_size[1], k.kernel[0],  k.kernel[1],  k.stride,
                                       k.padding,     k.dilation};
    kernels::run(kernels::Product{x_, k.in, samples() * out_size(k), k.in, k.out, weight.data,
                                  weight.packed_in, weight.packed_out, fused(k.epilogue), y_, k.out,
                                  &positions},
                 *run_.parallel_for);
    rest(k.epilogue, out_size(k) * k.out);
  }

  void operator()(const ConvolveTransposed& k) const {
    const Tensor& weight = tensor(k.weight);
    // The convolution whose transpose it is goes the other way.
    const kernels::Window window{k.out_size, k.in_size, k.kernel, k.stride, k.padding, k.dilation};
    each_sample(in_size(k) * k.in, out_size(k) * k.out, window_work(k, k.in * k.out),
                [&](const float* x, float* y) {
                  kernels::run(kernels::TransposedConvolution{
                      window, k.in, k.out, weight.packed_in, weight.packed_out, x, weight.data, y});
                });
    plain(k.epilogue, out_size(k), k.out);
  }

  void operator()(const Pool& k) const {
    const int64_t in = in_size(k) * k.channels, out = out_size(k) * k.channels;
    each_sample(in, out, out * k.kernel[0] * k.kernel[1], [&](const float* x, float* y) {
      kernels::run(kernels::PoolWindow{
          {k.in_size, k.out_size, k.kernel, k.stride, k.padding}, k.channels, k.is_max, x, y});
    });
  }

  void operator()(const GlobalAverage& k) const {
    const int64_t in = k.positions * k.channels;
    each_sample(in, k.channels, in, [&](const float* x, float* y) {
      kernels::run(kernels::MeanOfPositions{k.positions, k.channels, x, y});
    });
  }

  void operator()(const Upsample& k) const {
    const int64_t in = in_size(k) * k.channels, out = in * k.factor * k.factor;
    each_sample(in, out, out, [&](const float* x, float* y) {
      kernels::run(kernels::Enlarge{k.in_size, k.factor, k.channels, k.is_bilinear, x, y});
    });
  }

  void operator()(const NormalizeRows& k) const {
    const float *weight = vector(k.weight), *bias = vector(k.bias);
    const int64_t grain = std::max<int64_t>(1, kLeastElements / k.columns);
    (*run_.parallel_for)(samples() * k.rows, grain, [&](int64_t begin, int64_t end) {
      kernels::run(kernels::NormalizeRows{end - begin, k.columns, k.eps, k.centred,
                                          x_ + begin * k.columns, weight, bias,
                                          y_ + begin * k.columns});
    });
  }

  void operator()(const NormalizeGroups& k) const {
    const float *weight = vector(k.weight), *bias = vector(k.bias);
    const int64_t count = k.positions * k.channels;
    each_sample(count, count, count, [&](const float* x, float* y) {
      kernels::run(
          kernels::NormalizeGroups{k.positions, k.channels, k.groups, k.eps, x, weight, bias, y});
    });
  }

  void operator()(const ScaleAndShift& k) const {
    scale_and_shift(x_, vector(k.scale), vector(k.shift), samples() * k.outer, k.extent, k.inner,
                    y_);
  }

  void operator()(const Apply& k) const { apply(k.function, x_, k.count, y_); }

  void operator()(const Gate& k) const {
    const int64_t half = k.extent * k.inner;
    const int64_t grain = std::max<int64_t>(1, kLeastElements / half);
    (*run_.parallel_for)(samples() * k.outer, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* value = x_ + 2 * i * half;
        kernels::run(kernels::Apply{k.function, value + half, value, half, y_ + i * half});
      }
    });
  }

  void operator()(const Add& k) const {
    if (!k.tensor) {
      add(x_, read(step_->inputs[1]), samples() * k.count, y_);
      return;
    }
    const float* other = vector(k.tensor);
    each_sample(k.count, k.count, k.count, [&](const float* x, float* y) {
      kernels::run(kernels::Sum{x, other, k.count, y});
    });
  }

  void operator()(const Pad& k) const {
    float* to = y_;
    for (int64_t i = 0; i < samples() * k.outer; ++i) {
      std::fill_n(to, k.before, 0.0F);
      std::copy_n(x_ + i * k.count, k.count, to + k.before);
      to += k.before + k.count;
    }
  }

  void operator()(const Transpose& k) const {
    const int64_t count = k.rows * k.columns;
    each_sample(count, count, count, [&](const float* x, float* y) {
      for (int64_t i = 0; i < k.rows; ++i) {
        for (int64_t j = 0; j < k.columns; ++j) y[j * k.rows + i] = x[i * k.columns + j];
      }
    });
  }

  void operator()(const Copy& k) const { std::copy_n(x_, samples() * k.count, y_); }

  void operator()(const Embed& k) const {
    const auto* numbers = static_cast<const int64_t*>(run_.input);
    const Tensor& table = tensor(k.table);
    for (int64_t i = 0; i < samples() * k.count; ++i) {
      if (numbers[i] < 0 || numbers[i] >= k.rows) {
        throw NoSuchRow("the input holds " + std::to_string(numbers[i]) +
                        ", but the table has the rows 0 to " + std::to_string(k.rows - 1));
      }
      std::copy_n(table.data + numbers[i] * table.packed_in, k.columns, y_ + i * k.columns);
    }
  }

  void operator()(const Attend& k) const {
    const int64_t out = k.heads * k.head_dim, in = 3 * out, heads = samples() * k.heads;
    const float factor = 1.0F / std::sqrt(static_cast<float>(k.head_dim));
    const kernels::ParallelFor serial = kernels::serially;
    const int64_t work = 2 * k.positions * k.positions * k.head_dim;
    const int64_t grain = std::max<int64_t>(1, kLeastElements / std::max<int64_t>(1, work));
    // Some rows of the scores at a time.
    constexpr int64_t kRows = 64;
    (*run_.parallel_for)(heads, grain, [&](int64_t begin, int64_t end) {
      thread_local std::vector<float> memory;
      const auto needed = static_cast<size_t>(std::min(kRows, k.positions) * k.positions);
      if (memory.size() < needed) memory.resize(needed);
      float* scores = memory.data();
      for (int64_t h = begin; h < end; ++h) {
        const float* q = x_ + h / k.heads * k.positions * in + h % k.heads * k.head_dim;
        float* y = y_ + h / k.heads * k.positions * out + h % k.heads * k.head_dim;
        for (int64_t first = 0; first < k.positions; first += kRows) {
          const int64_t rows = std::min(kRows, k.positions - first);
          // No row of them sees more.
          const int64_t most = k.causal ? first + rows : k.positions;
          kernels::run(kernels::MatrixProduct{rows, most, k.head_dim, q + first * in, in, 1,
                                              q + out, 1, in, scores, most},
                       serial);
          for (int64_t i = 0; i < rows; ++i) {
            float* row = scores + i * most;
            const int64_t seen = k.causal ? first + i + 1 : most;
            kernels::row_softmax(row, row, seen, factor);
            std::fill(row + seen, row + most, 0.0F);
          }
          kernels::run(kernels::MatrixProduct{rows, k.head_dim, most, scores, most, 1, q + 2 * out,
                                              in, 1, y + first * out, out},
                       serial);
        }
      }
    });
  }

  void operator()(const Call& k) const { run_.call(k.number, samples(), x_, y_); }

 private:
  int64_t samples() const { return run_.samples; }
  const Tensor& tensor(TensorPlace place) const { return (*run_.tensors)[place]; }
  const float* vector(const std::optional<TensorPlace>& place) const {
    return place ? tensor(*place).data : nullptr;
  }

  float* write(ValuePlace place) const {
    const Value& value = plan_.values[place];
    return value.memory == Memory::kOutput ? run_.output : run_.arena + value.offset * samples();
  }
  const float* read(ValuePlace place) const {
    return plan_.values[place].memory == Memory::kInput ? static_cast<const float*>(run_.input)
                                                        : write(place);
  }

  template <typename Kernel>
  static int64_t in_size(const Kernel& k) {
    return k.in_size[0] * k.in_size[1];
  }
  template <typename Kernel>
  static int64_t out_size(const Kernel& k) {
    return k.out_size[0] * k.out_size[1];
  }
  static kernels::Window window(const Convolve& k) {
    return {k.in_size, k.out_size, k.kernel, k.stride, k.padding, k.dilation};
  }
  template <typename Kernel>
  static int64_t window_work(const Kernel& k, int64_t a_tap) {
    return out_size(k) * k.kernel[0] * k.kernel[1] * a_tap;
  }

  /// Calls `one(x, y)` for each sample, of which `in` and `out` elements lie in x and y.
  template <typename One>
  void each_sample(int64_t in, int64_t out, int64_t work, const One& one) const {
    const int64_t grain = std::max<int64_t>(1, kLeastElements / std::max<int64_t>(1, work));
    (*run_.parallel_for)(samples(), grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) one(x_ + i * in, y_ + i * out);
    });
  }

  /// The part of an epilogue that products have.
  kernels::Epilogue fused(const Epilogue& epilogue) const {
    return {vector(epilogue.scale), vector(epilogue.shift), epilogue.function == Function::kRelu};
  }

  /// What of it comes behind: `count` elements a sample, in place.
  void rest(const Epilogue& epilogue, int64_t count) const {
    if (epilogue.function && epilogue.function != Function::kRelu) {
      apply(*epilogue.function, y_, count, y_);
    }
    if (epilogue.residual) add(y_, read(*epilogue.residual), samples() * count, y_);
    if (epilogue.after) apply(*epilogue.after, y_, count, y_);
  }

  /// All of it, in place.
  void plain(const Epilogue& epilogue, int64_t positions, int64_t features) const {
    if (epilogue.scale || epilogue.shift) {
      scale_and_shift(y_, vector(epilogue.scale), vector(epilogue.shift), samples() * positions,
                      features, 1, y_);
    }
    if (epilogue.function == Function::kRelu) {
      apply(Function::kRelu, y_, positions * features, y_);
    }
    rest(epilogue, positions * features);
  }

  void apply(Function function, const float* x, int64_t count, float* y) const {
    spread(samples() * count, [&](int64_t begin, int64_t end) {
      kernels::run(kernels::Apply{function, x + begin, nullptr, end - begin, y + begin});
    });
  }

  void add(const float* a, const float* b, int64_t count, float* y) const {
    spread(count, [&](int64_t begin, int64_t end) {
      kernels::run(kernels::Sum{a + begin, b + begin, end - begin, y + begin});
    });
  }

  void scale_and_shift(const float* x, const float* scale, const float* shift, int64_t outer,
                       int64_t extent, int64_t inner, float* y) const {
    const int64_t count = extent * inner;
    const int64_t grain = std::max<int64_t>(1, kLeastElements / std::max<int64_t>(1, count));
    (*run_.parallel_for)(outer, grain, [&](int64_t begin, int64_t end) {
      if (inner == 1) {
        const int64_t first = begin * extent;
        kernels::run(kernels::ScaleRows{end - begin, extent, x + first, scale, shift, y + first});
        return;
      }
      for (int64_t i = begin * extent; i < end * extent; ++i) {
        const float factor = scale == nullptr ? 1.0F : scale[i % extent];
        const float term = shift == nullptr ? 0.0F : shift[i % extent];
        for (int64_t j = i * inner; j < (i + 1) * inner; ++j) y[j] = factor * x[j] + term;
      }
    });
  }

  template <typename Each>
  void spread(int64_t count, const Each& each) const {
    (*run_.parallel_for)(count, kLeastElements, each);
  }

  const Plan& plan_;
  const Run& run_;
  const Step* step_ = nullptr;
  const float* x_ = nullptr;
  float* y_ = nullptr;
};

}  // namespace

void run(const Plan& plan, const Run& run) {
  Runner runner(plan, run);
  for (const Step& step : plan.steps) runner.step(step);
}

}  // namespace nsn::plan
