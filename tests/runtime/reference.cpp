#include "reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nsn::test {

namespace {

using plan::Function;
using Numbers = std::vector<double>;

double apply(Function function, double x) {
  switch (function) {
    case Function::kRelu:
      return x <= 0 ? 0 : x;  // NaN passes
    case Function::kGelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Function::kSilu:
      return x / (1 + std::exp(-x));
    case Function::kSigmoid:
      return 1 / (1 + std::exp(-x));
    default:
      return std::tanh(x);
  }
}

class Interpreter {
 public:
  Interpreter(const Sample& sample, const runtime::FileNetwork& network, Numbers input)
      : sample_(sample), network_(network), values_(network.plan.values.size()) {
    values_[0] = std::move(input);
  }

  Numbers operator()() {
    for (const plan::Step& step : network_.plan.steps) {
      step_ = &step;
      x_ = &values_[step.inputs[0]];
      y_.assign(static_cast<size_t>(plan::numel(network_.plan.values[step.output].shape)), 0.0);
      std::visit(*this, step.kernel);
      values_[step.output] = y_;
    }
    return y_;
  }

  void operator()(const plan::Multiply& k) {
    for (int64_t r = 0; r < k.rows; ++r) {
      for (int64_t o = 0; o < k.out; ++o) {
        for (int64_t i = 0; i < k.in; ++i) {
          y(r * k.out + o) += x(r * k.in + i) * panel(k.weight, o, i, 0);
        }
      }
    }
    epilogue(k.epilogue, k.out);
  }

  void operator()(const plan::Convolve& k) {
    const int64_t in = k.in / k.groups, out = k.out / k.groups;
    y_.assign(static_cast<size_t>(k.window.outputs() * k.out), 0.0);
    over_taps(k.window, [&](int64_t to, int64_t from, int64_t tap) {
      for (int64_t o = 0; o < k.out; ++o) {
        for (int64_t i = 0; i < in; ++i) {
          const double w =
              k.groups == 1 ? panel(k.weight, o, i, tap) : element(k.weight, tap, i, o);
          y(to * k.out + o) += x(from * k.in + o / out * in + i) * w;
        }
      }
    });
    epilogue(k.epilogue, k.out);
    if (!k.pools()) return;
    const auto [height, width] = k.out_size();
    Numbers pooled(static_cast<size_t>(height * width * k.out),
                   -std::numeric_limits<double>::infinity());
    for (int64_t h = 0; h < height * k.pool[0]; ++h) {
      for (int64_t w = 0; w < width * k.pool[1]; ++w) {
        for (int64_t o = 0; o < k.out; ++o) {
          const int64_t to = (h / k.pool[0] * width + w / k.pool[1]) * k.out + o;
          double& own = pooled[static_cast<size_t>(to)];
          own = std::max(own, y((h * k.window.out_size[1] + w) * k.out + o));
        }
      }
    }
    y_ = std::move(pooled);
  }

  void operator()(const plan::ConvolveTransposed& k) {
    over_taps(k.window, [&](int64_t from, int64_t to, int64_t tap) {
      for (int64_t o = 0; o < k.out; ++o) {
        for (int64_t i = 0; i < k.in; ++i) {
          y(to * k.out + o) += x(from * k.in + i) * element(k.weight, tap, i, o);
        }
      }
    });
    epilogue(k.epilogue, k.out);
  }

  void operator()(const plan::Pool& k) {
    if (k.is_max) std::fill(y_.begin(), y_.end(), -std::numeric_limits<double>::infinity());
    over_taps(k.window, [&](int64_t to, int64_t from, int64_t /*tap*/) {
      for (int64_t c = 0; c < k.channels; ++c) {
        double& own = y(to * k.channels + c);
        const double other = x(from * k.channels + c);
        own = k.is_max ? std::max(own, other) : own + other / static_cast<double>(k.window.taps());
      }
    });
  }

  void operator()(const plan::GlobalAverage& k) {
    for (int64_t p = 0; p < k.positions; ++p) {
      for (int64_t c = 0; c < k.channels; ++c) {
        y(c) += x(p * k.channels + c) / static_cast<double>(k.positions);
      }
    }
  }

  void operator()(const plan::Upsample& k) {
    const int64_t width = k.in_size[1] * k.factor;
    for (int64_t h = 0; h < k.in_size[0] * k.factor; ++h) {
      for (int64_t w = 0; w < width; ++w) {
        for (int64_t c = 0; c < k.channels; ++c) {
          double& to = y((h * width + w) * k.channels + c);
          const auto from = [&](int64_t i, int64_t j) {
            return x((i * k.in_size[1] + j) * k.channels + c);
          };
          if (!k.is_bilinear) {
            to = from(h / k.factor, w / k.factor);
            continue;
          }
          const auto place = [&](int64_t at) {
            const double middle = (static_cast<double>(at) + 0.5) / static_cast<double>(k.factor);
            return std::max(0.0, middle - 0.5);
          };
          const auto i = static_cast<int64_t>(place(h)), j = static_cast<int64_t>(place(w));
          const double down = place(h) - static_cast<double>(i);
          const double right = place(w) - static_cast<double>(j);
          const int64_t below = std::min(i + 1, k.in_size[0] - 1);
          const int64_t beside = std::min(j + 1, k.in_size[1] - 1);
          to = (1 - down) * ((1 - right) * from(i, j) + right * from(i, beside)) +
               down * ((1 - right) * from(below, j) + right * from(below, beside));
        }
      }
    }
  }

  void operator()(const plan::NormalizeRows& k) {
    for (int64_t r = 0; r < k.rows; ++r) {
      normalize(k.columns, k.eps, k.centred, [&](int64_t i) { return r * k.columns + i; });
      for (int64_t i = 0; i < k.columns; ++i) {
        scale(y(r * k.columns + i), k.weight, k.bias, i);
      }
    }
  }

  void operator()(const plan::NormalizeGroups& k) {
    const int64_t channels = k.channels / k.groups;
    for (int64_t g = 0; g < k.groups; ++g) {
      normalize(k.positions * channels, k.eps, true,
                [&](int64_t i) { return i / channels * k.channels + g * channels + i % channels; });
    }
    for (int64_t i = 0; i < k.positions * k.channels; ++i) {
      scale(y(i), k.weight, k.bias, i % k.channels);
    }
  }

  void operator()(const plan::ScaleAndShift& k) {
    for (int64_t i = 0; i < k.outer * k.extent * k.inner; ++i) {
      y(i) = x(i);
      scale(y(i), k.scale, k.shift, i / k.inner % k.extent);
    }
  }

  void operator()(const plan::Apply& k) {
    for (int64_t i = 0; i < k.count; ++i) y(i) = apply(k.function, x(i));
  }

  void operator()(const plan::Gate& k) {
    const int64_t half = k.extent * k.inner;
    for (int64_t i = 0; i < k.outer * half; ++i) {
      const int64_t at = i / half * 2 * half + i % half;
      y(i) = x(at) * apply(k.function, x(at + half));
    }
  }

  void operator()(const plan::Add& k) {
    for (int64_t i = 0; i < k.count; ++i) {
      y(i) = x(i) +
             (k.tensor ? content(*k.tensor, i) : values_[step_->inputs[1]][static_cast<size_t>(i)]);
    }
  }

  void operator()(const plan::Pad& k) {
    for (int64_t i = 0; i < k.outer * k.count; ++i) {
      y(i / k.count * (k.before + k.count) + k.before + i % k.count) = x(i);
    }
  }

  void operator()(const plan::Transpose& k) {
    for (int64_t i = 0; i < k.rows * k.columns; ++i) {
      y(i % k.columns * k.rows + i / k.columns) = x(i);
    }
  }

  void operator()(const plan::Copy& /*k*/) { y_ = *x_; }

  void operator()(const plan::Embed& k) {
    for (int64_t i = 0; i < k.count * k.columns; ++i) {
      y(i) = element(k.table, 0, static_cast<int64_t>(x(i / k.columns)), i % k.columns);
    }
  }

  void operator()(const plan::Attend& k) {
    const int64_t out = k.heads * k.head_dim;
    const auto part = [&](int64_t which, int64_t position, int64_t head, int64_t i) {
      return x(position * 3 * out + which * out + head * k.head_dim + i);
    };
    for (int64_t h = 0; h < k.heads; ++h) {
      for (int64_t p = 0; p < k.positions; ++p) {
        const int64_t seen = k.causal ? p + 1 : k.positions;
        Numbers shares;
        for (int64_t q = 0; q < seen; ++q) {
          double score = 0;
          for (int64_t i = 0; i < k.head_dim; ++i) score += part(0, p, h, i) * part(1, q, h, i);
          shares.push_back(score / std::sqrt(static_cast<double>(k.head_dim)));
        }
        const double most = *std::max_element(shares.begin(), shares.end());
        double sum = 0;
        for (double& share : shares) {
          share = std::exp(share - most);
          sum += share;
        }
        for (int64_t q = 0; q < seen; ++q) {
          for (int64_t i = 0; i < k.head_dim; ++i) {
            y(p * out + h * k.head_dim + i) +=
                shares[static_cast<size_t>(q)] / sum * part(2, q, h, i);
          }
        }
      }
    }
  }

  void operator()(const plan::Call& /*k*/) {}

 private:
  double x(int64_t i) const { return (*x_)[static_cast<size_t>(i)]; }
  double& y(int64_t i) { return y_[static_cast<size_t>(i)]; }

  double content(size_t place, int64_t i) const {
    return sample_.contents()[network_.table[place].tensor][static_cast<size_t>(i)];
  }
  double element(size_t place, int64_t a, int64_t b, int64_t c) const {
    const auto& sizes = sample_.sizes(network_.table[place].tensor);
    return content(place, (a * sizes[1] + b) * sizes[2] + c);
  }
  double panel(size_t place, int64_t out, int64_t in, int64_t tap) const {
    return element(place, out, in, tap);
  }

  void scale(double& value, const std::optional<size_t>& weight, const std::optional<size_t>& bias,
             int64_t i) const {
    if (weight) value *= content(*weight, i);
    if (bias) value += content(*bias, i);
  }

  template <typename Place>
  void normalize(int64_t count, double eps, bool centred, const Place& place) {
    double mean = 0, square = 0;
    for (int64_t i = 0; centred && i < count; ++i) mean += x(place(i));
    mean /= static_cast<double>(count);
    for (int64_t i = 0; i < count; ++i) square += std::pow(x(place(i)) - mean, 2);
    for (int64_t i = 0; i < count; ++i) {
      y(place(i)) = (x(place(i)) - mean) / std::sqrt(square / static_cast<double>(count) + eps);
    }
  }

  /// Calls `each(output, input, tap)` for all positions and taps inside.
  template <typename Each>
  static void over_taps(const plan::Window& at, const Each& each) {
    for (int64_t to = 0; to < at.outputs(); ++to) {
      for (int64_t tap = 0; tap < at.taps(); ++tap) {
        const int64_t h = to / at.out_size[1] * at.stride[0] - at.padding[0] +
                          tap / at.kernel[1] * at.dilation[0];
        const int64_t w = to % at.out_size[1] * at.stride[1] - at.padding[1] +
                          tap % at.kernel[1] * at.dilation[1];
        if (h < 0 || h >= at.in_size[0] || w < 0 || w >= at.in_size[1]) continue;
        each(to, h * at.in_size[1] + w, tap);
      }
    }
  }

  void epilogue(const plan::Epilogue& epilogue, int64_t features) {
    for (int64_t i = 0; i < static_cast<int64_t>(y_.size()); ++i) {
      scale(y(i), epilogue.scale, epilogue.shift, i % features);
      if (epilogue.function) y(i) = apply(*epilogue.function, y(i));
      if (epilogue.residual) y(i) += values_[*epilogue.residual][static_cast<size_t>(i)];
      if (epilogue.after) y(i) = apply(*epilogue.after, y(i));
    }
  }

  const Sample& sample_;
  const runtime::FileNetwork& network_;
  std::vector<Numbers> values_;
  const plan::Step* step_ = nullptr;
  const Numbers* x_ = nullptr;
  Numbers y_;
};

}  // namespace

std::vector<double> reference(const Sample& sample, size_t network,
                              const std::vector<double>& input) {
  return Interpreter(sample, sample.file().networks[network], input)();
}

}  // namespace nsn::test
