#include "plan/run.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/matrix_product.h"
#include "kernels/normalize.h"
#include "kernels/softmax.h"

namespace nsn::plan {

namespace {

/// Elements of a pass below which a second thread costs more than it brings.
constexpr int64_t kLeastElements = int64_t{1} << 15;

/// Whether threads may have parts of their own. Each then reads all weights, which have to stay in
/// its cache.
bool may_be_side_by_side(const Plan& plan, int64_t threads) {
  constexpr int64_t kWeights = (int64_t{1} << 19) / sizeof(float);
  return threads > 1 && !plan.calls && plan.weights <= kWeights;
}

/// The most samples of a part, whose activations are to stay in the threads' caches. Threads that
/// share each step wait for each other behind it, which larger parts make up for. What a plan calls
/// sees the whole batch.
int64_t most_samples(const Plan& plan, int64_t batch, int64_t threads) {
  if (plan.calls) return batch;
  const bool share = threads > 1 && !may_be_side_by_side(plan, threads);
  const int64_t bytes = share ? threads * (int64_t{1} << 20) : int64_t{1} << 19;
  const auto elements = bytes / static_cast<int64_t>(sizeof(float));
  return std::clamp<int64_t>(elements / std::max<int64_t>(1, plan.arena), 1, batch);
}

/// How a batch is cut: into parts of nearly the same size, so that threads get equal shares.
struct Parts {
  /// Of the largest part.
  int64_t samples;
  int64_t count;
  /// Whether threads have parts of their own, and not parts of each step.
  bool side_by_side;
};

Parts parts_of(const Plan& plan, int64_t batch, int64_t threads) {
  // Each thread has to have enough to do.
  constexpr int64_t kFlops = int64_t{1} << 17;
  const bool side_by_side =
      batch > 1 && may_be_side_by_side(plan, threads) &&
      plan.flops * static_cast<double>(batch) >= static_cast<double>(threads * kFlops);
  const int64_t most = most_samples(plan, batch, threads);
  int64_t count = (batch + most - 1) / most;
  if (side_by_side) count = std::min(batch, (count + threads - 1) / threads * threads);
  return {(batch + count - 1) / count, count, side_by_side};
}

/// Runs one part of a batch.
class Runner {
 public:
  /// `memory`: the arena, and behind it the scratch memory of each thread.
  Runner(const Plan& plan, const Run& run, float* memory)
      : plan_(plan), run_(run), arena_(memory), scratch_(memory + plan.arena * run.samples) {}

  std::optional<NoSuchRow> operator()() {
    for (const Step& step : plan_.steps) {
      step_ = &step;
      x_ = step.inputs.empty() ? nullptr : read(step.inputs[0]);
      y_ = write(step.output);
      std::visit(*this, step.kernel);
      if (no_such_row_) break;
    }
    return no_such_row_;
  }

  void operator()(const Multiply& k) const {
    kernels::run(kernels::Product{x_, k.in, samples() * k.rows, k.in, tensor(k.weight).panels,
                                  fused(k.epilogue), y_, k.out},
                 *run_.parallel_for);
    rest(k.epilogue, k.rows * k.out);
  }

  void operator()(const Convolve& k) const {
    const Window& at = k.window;
    const Tensor& weight = tensor(k.weight);
    if (k.groups > 1) {
      const int64_t work = at.outputs() * at.taps() * k.in / k.groups * k.out;
      each_sample(at.inputs() * k.in, at.outputs() * k.out, work, [&](const float* x, float* y) {
        kernels::run(kernels::GroupedConvolution{at, k.in, k.out, k.groups, weight.packed_in,
                                                 weight.packed_out, x, weight.data, y});
      });
      plain(k.epilogue, at.outputs(), k.out);
      return;
    }
    const kernels::Image image{&at, k.pool};
    kernels::run(kernels::Product{x_, k.in, samples(), k.in, weight.panels, fused(k.epilogue), y_,
                                  k.out, &image},
                 *run_.parallel_for);
    rest(k.epilogue, k.outputs() * k.out);
  }

  void operator()(const ConvolveTransposed& k) const {
    const Window& at = k.window;
    const Tensor& weight = tensor(k.weight);
    const int64_t work = at.outputs() * at.taps() * k.in * k.out;
    each_sample(at.outputs() * k.in, at.inputs() * k.out, work, [&](const float* x, float* y) {
      kernels::run(kernels::TransposedConvolution{at, k.in, k.out, weight.packed_in,
                                                  weight.packed_out, x, weight.data, y});
    });
    plain(k.epilogue, at.inputs(), k.out);
  }

  void operator()(const Pool& k) const {
    const int64_t in = k.window.inputs() * k.channels, out = k.window.outputs() * k.channels;
    each_sample(in, out, out * k.window.taps(), [&](const float* x, float* y) {
      kernels::run(kernels::PoolWindow{k.window, k.channels, k.is_max, x, y});
    });
  }

  void operator()(const GlobalAverage& k) const {
    const int64_t in = k.positions * k.channels;
    each_sample(in, k.channels, in, [&](const float* x, float* y) {
      kernels::run(kernels::MeanOfPositions{k.positions, k.channels, x, y});
    });
  }

  void operator()(const Upsample& k) const {
    const int64_t in = k.in_size[0] * k.in_size[1] * k.channels, out = in * k.factor * k.factor;
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

  void operator()(const Embed& k) {
    const auto* numbers = static_cast<const int64_t*>(run_.input);
    const Tensor& table = tensor(k.table);
    for (int64_t i = 0; i < samples() * k.count; ++i) {
      if (numbers[i] < 0 || numbers[i] >= k.rows) {
        no_such_row_ = {numbers[i], k.rows};
        return;
      }
      std::copy_n(table.data + numbers[i] * table.packed_out, k.columns, y_ + i * k.columns);
    }
  }

  void operator()(const Attend& k) const {
    const int64_t out = k.heads * k.head_dim, in = 3 * out, heads = samples() * k.heads;
    const float factor = 1.0F / std::sqrt(static_cast<float>(k.head_dim));
    const kernels::ParallelFor serial = kernels::serially;
    // As many parts as may be computed at once, each in memory of its own.
    const int64_t work = std::max<int64_t>(1, 2 * k.positions * k.positions * k.head_dim);
    const int64_t most =
        std::min(run_.threads, (heads * work + kLeastElements - 1) / kLeastElements);
    const int64_t parts = std::clamp<int64_t>(most, 1, heads);
    (*run_.parallel_for)(parts, 1, [&](int64_t first_part, int64_t last_part) {
      const int64_t begin = first_part * heads / parts, end = last_part * heads / parts;
      float* scores = scratch_ + first_part * plan_.scratch;
      float* panel = scores + in_lines(k.scores());
      for (int64_t h = begin; h < end; ++h) {
        const float* q = x_ + h / k.heads * k.positions * in + h % k.heads * k.head_dim;
        float* y = y_ + h / k.heads * k.positions * out + h % k.heads * k.head_dim;
        for (int64_t first = 0; first < k.positions; first += k.rows()) {
          const int64_t rows = std::min(k.rows(), k.positions - first);
          // No row of them sees more.
          const int64_t most = k.causal ? first + rows : k.positions;
          kernels::run(kernels::MatrixProduct{rows, most, k.head_dim, q + first * in, in, 1,
                                              q + out, 1, in, scores, most, 1.0F, false, panel},
                       serial);
          kernels::run(kernels::SoftmaxRows{rows, most, k.causal ? first + 1 : most,
                                            k.causal ? 1 : 0, factor, scores});
          kernels::run(kernels::MatrixProduct{rows, k.head_dim, most, scores, most, 1, q + 2 * out,
                                              in, 1, y + first * out, out, 1.0F, false, panel},
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
    return value.memory == Memory::kOutput ? run_.output : arena_ + value.offset * samples();
  }
  const float* read(ValuePlace place) const {
    return plan_.values[place].memory == Memory::kInput ? static_cast<const float*>(run_.input)
                                                        : write(place);
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
  float* arena_;
  float* scratch_;
  std::optional<NoSuchRow> no_such_row_;
  const Step* step_ = nullptr;
  const float* x_ = nullptr;
  float* y_ = nullptr;
};

}  // namespace

int64_t memory_for(const Plan& plan, int64_t samples, int64_t threads) {
  // Of all smaller batches too, so that no part is assumed to be smaller than the largest.
  const int64_t most = most_samples(plan, samples, threads);
  if (!may_be_side_by_side(plan, threads)) {
    return plan.arena * most + plan.scratch * threads;
  }
  const int64_t share = std::min(most, (samples + threads - 1) / threads);
  return threads * (plan.arena * std::max<int64_t>(1, share) + plan.scratch);
}

std::optional<NoSuchRow> run(const Plan& plan, const Run& run) {
  if (run.samples == 0) return {};
  const Parts parts = parts_of(plan, run.samples, run.threads);
  const auto bytes = static_cast<int64_t>(plan.embeds ? sizeof(int64_t) : sizeof(float));
  std::atomic<bool> is_wrong = false;
  std::optional<NoSuchRow> wrong;
  const auto run_parts = [&](int64_t first, int64_t last, Run part, float* memory) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i * run.samples / parts.count;
      part.samples = (i + 1) * run.samples / parts.count - begin;
      part.input = static_cast<const char*>(run.input) + begin * plan.inputs * bytes;
      part.output = run.output + begin * plan.outputs;
      const auto found = Runner(plan, part, memory)();
      if (!found) continue;
      if (!is_wrong.exchange(true)) wrong = found;
      return;
    }
  };
  float* const memory = run.memory;
  if (!parts.side_by_side) {
    run_parts(0, parts.count, run, memory);
    return wrong;
  }
  static const kernels::ParallelFor serial = kernels::serially;
  const int64_t slots = std::min(run.threads, parts.count);
  const int64_t slot_size = plan.arena * parts.samples + plan.scratch;
  (*run.parallel_for)(slots, 1, [&](int64_t first, int64_t last) {
    Run part = run;
    part.threads = 1;
    part.parallel_for = &serial;
    run_parts(first * parts.count / slots, last * parts.count / slots, part,
              memory + first * slot_size);
  });
  return wrong;
}

}  // namespace nsn::plan
