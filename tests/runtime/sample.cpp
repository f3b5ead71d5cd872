#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "kernels/panels.h"

namespace nsn::test {

using kernels::WeightType;
using plan::Function;
using plan::Pair;

namespace {

/// What a file of this type has in place of a number. int8 has no scale here but where the plan has
/// one, so that numbers stay small.
float rounded(WeightType type, float number) {
  if (type == WeightType::kInt8) return std::clamp(std::nearbyint(4 * number), -127.0F, 127.0F);
  std::array<char, sizeof(float)> bytes;
  kernels::store(type, number, bytes.data());
  return kernels::load(type, bytes.data());
}

}  // namespace

std::vector<float> Sample::numbers(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> result(static_cast<size_t>(count));
  for (float& each : result) each = normal(random_);
  return result;
}

size_t Sample::weight(int64_t out, int64_t in, int64_t taps) {
  runtime::FileTensor tensor;
  tensor.out_ends = {out};
  tensor.in_ends = {in};
  tensor.sizes[0] = taps;
  if (has_narrow_ && chance(0.5)) tensor.type = static_cast<WeightType>(integer(0, 3));
  file_.tensors.push_back(tensor);
  sizes_.push_back({out, in, taps});
  contents_.push_back(numbers(out * in * taps));
  // Outputs stay of the size of inputs.
  const float factor = 1.0F / std::sqrt(static_cast<float>(in * taps));
  for (float& each : contents_.back()) each = rounded(tensor.type, factor * each);
  return file_.tensors.size() - 1;
}

size_t Sample::elements(int64_t a, int64_t b, int64_t c) {
  runtime::FileTensor tensor;
  tensor.sizes = {a, b, c};
  file_.tensors.push_back(tensor);
  sizes_.push_back({a, b, c});
  contents_.push_back(numbers(a * b * c));
  return file_.tensors.size() - 1;
}

/// Appends kernels to a plan, each of which reads what the one before made.
class NetworkBuilder {
 public:
  NetworkBuilder(Sample& sample, const std::string& name, plan::Shape input) : sample_(sample) {
    network_.name = name;
    network_.plan.values.push_back({std::move(input), plan::Memory::kInput});
  }

  const plan::Shape& shape() const { return network_.plan.values.back().shape; }

  void step(plan::Kernel kernel, plan::Shape shape, std::vector<size_t> more = {}) {
    auto& plan = network_.plan;
    std::vector<size_t> inputs{plan.values.size() - 1};
    inputs.insert(inputs.end(), more.begin(), more.end());
    plan.values.push_back({std::move(shape)});
    plan.steps.push_back({"block", std::move(kernel), std::move(inputs), plan.values.size() - 1});
  }

  /// A place of the table for a slice of a tensor.
  size_t slice(size_t tensor, int64_t out = 0, int64_t in = 0) {
    network_.table.push_back({tensor, out, in});
    return network_.table.size() - 1;
  }
  /// A weight of which the leading (out, in) is meant.
  size_t panels(int64_t out, int64_t in, int64_t taps) {
    const int64_t more = sample_.chance(0.5) ? sample_.integer(1, 40) : 0;
    return slice(sample_.weight(out + more, in + more / 2, taps), out, in);
  }
  size_t vector(int64_t count) { return slice(sample_.elements(1, 1, count)); }
  std::optional<size_t> maybe_vector(int64_t count) {
    return sample_.chance(0.6) ? std::optional(vector(count)) : std::nullopt;
  }
  Function function() { return static_cast<Function>(sample_.integer(0, 4)); }
  std::optional<Function> maybe_function() {
    return sample_.chance(0.6) ? std::optional(function()) : std::nullopt;
  }

  /// A value of `count` elements that is there already.
  std::optional<size_t> maybe_value(int64_t count) {
    std::vector<size_t> found;
    for (size_t i = 0; i < network_.plan.values.size(); ++i) {
      if (plan::numel(network_.plan.values[i].shape) == count) found.push_back(i);
    }
    if (found.empty() || sample_.chance(0.3)) return {};
    return found[static_cast<size_t>(sample_.integer(0, static_cast<int64_t>(found.size()) - 1))];
  }
  plan::Epilogue epilogue(int64_t features, int64_t count) {
    plan::Epilogue result{maybe_vector(features), maybe_vector(features), maybe_function(), {}, {}};
    result.residual = maybe_value(count);
    if (result.residual) result.after = maybe_function();
    return result;
  }

  void random_step();

  void finish() {
    network_.plan.values.back().memory = plan::Memory::kOutput;
    sample_.file_.networks.push_back(network_);
  }

 private:
  int64_t integer(int64_t least, int64_t most) { return sample_.integer(least, most); }
  /// A divisor of it.
  int64_t part_of(int64_t count) {
    const int64_t first = integer(1, count);
    for (int64_t part = first;; --part) {
      if (count % part == 0) return part;
    }
  }
  plan::Window window(const Pair& size, bool dilates);

  Sample& sample_;
  runtime::FileNetwork network_;
};

plan::Window NetworkBuilder::window(const Pair& size, bool dilates) {
  plan::Window at{size, {}, {}, {}, {}};
  for (const size_t d : {0U, 1U}) {
    at.dilation[d] = dilates ? integer(1, 2) : 1;
    // Two large extents are more taps than are multiplied at a time.
    at.kernel[d] = sample_.chance(0.2) ? integer(4, 20) : integer(1, 3);
    at.padding[d] = integer(at.kernel[d] / 2, at.kernel[d] / 2 + 1);
    at.stride[d] = integer(1, 2);
    const int64_t room = size[d] + 2 * at.padding[d] - at.dilation[d] * (at.kernel[d] - 1) - 1;
    if (room < 0) {
      at.kernel[d] = 1;
      at.padding[d] = 0;
      at.out_size[d] = (size[d] - 1) / at.stride[d] + 1;
    } else {
      at.out_size[d] = room / at.stride[d] + 1;
    }
    // Windows that no padding would bring about, outside of the input.
    if (sample_.chance(0.1)) at.out_size[d] += integer(1, 3);
  }
  return at;
}

void NetworkBuilder::random_step() {
  const int64_t count = plan::numel(shape());
  const int64_t channels = part_of(count), positions = count / channels;
  const int64_t height = part_of(positions), width = positions / height;
  const int64_t features = integer(1, 50);
  switch (integer(0, 16)) {
    case 0:
      return step(plan::Multiply{positions, channels, features, panels(features, channels, 1),
                                 epilogue(features, positions * features)},
                  {positions, features});
    case 1: {
      const plan::Window at = window({height, width}, true);
      plan::Convolve kernel{at, channels, features, 1, panels(features, channels, at.taps()), {}};
      if (sample_.chance(0.5)) {
        kernel.epilogue = {maybe_vector(features), maybe_vector(features), {}, {}, {}};
        if (sample_.chance(0.5)) kernel.epilogue.function = Function::kRelu;
        for (const size_t d : {0U, 1U}) {
          kernel.pool[d] = integer(1, std::min<int64_t>(at.out_size[d], 6));
        }
        if (!kernel.may_pool(kernel.pool)) kernel.pool = {1, 1};
      } else {
        kernel.epilogue = epilogue(features, at.outputs() * features);
      }
      return step(kernel, {kernel.out_size()[0], kernel.out_size()[1], features});
    }
    case 2: {
      const plan::Window at = window({height, width}, true);
      const int64_t groups = part_of(channels);
      const int64_t out = groups * (sample_.chance(0.5) ? channels / groups : integer(1, 3));
      if (groups == 1) return;
      const size_t weight = slice(sample_.elements(at.taps(), channels / groups, out));
      return step(
          plan::Convolve{at, channels, out, groups, weight, epilogue(out, at.outputs() * out)},
          {at.out_size[0], at.out_size[1], out});
    }
    case 3: {
      // The window goes from the output to the input.
      plan::Window at{{}, {height, width}, {}, {}, {}};
      for (const size_t d : {0U, 1U}) {
        at.kernel[d] = integer(1, 3);
        at.stride[d] = integer(1, 2);
        at.padding[d] = integer(0, at.kernel[d] / 2);
        at.in_size[d] = std::max<int64_t>(
            1, (at.out_size[d] - 1) * at.stride[d] - 2 * at.padding[d] + at.kernel[d]);
      }
      if (at.inputs() * features > 5000) return;
      const size_t weight = slice(sample_.elements(at.taps(), channels, features));
      return step(plan::ConvolveTransposed{at, channels, features, weight,
                                           epilogue(features, at.inputs() * features)},
                  {at.in_size[0], at.in_size[1], features});
    }
    case 4: {
      const plan::Window at = window({height, width}, false);
      const bool is_max = sample_.chance(0.5) && at.padding[0] * 2 <= at.kernel[0] &&
                          at.padding[1] * 2 <= at.kernel[1];
      return step(plan::Pool{at, channels, is_max}, {at.out_size[0], at.out_size[1], channels});
    }
    case 5:
      return step(plan::GlobalAverage{positions, channels}, {channels});
    case 6: {
      const int64_t factor = integer(1, 2);
      if (count * factor * factor > 5000) return;
      return step(plan::Upsample{{height, width}, factor, channels, sample_.chance(0.5)},
                  {height * factor, width * factor, channels});
    }
    case 7:
      return step(plan::NormalizeRows{positions, channels, 1e-5, sample_.chance(0.5),
                                      maybe_vector(channels), maybe_vector(channels)},
                  shape());
    case 8:
      return step(plan::NormalizeGroups{positions, channels, part_of(channels), 1e-5,
                                        maybe_vector(channels), maybe_vector(channels)},
                  shape());
    case 9:
      return step(
          plan::ScaleAndShift{height, width, channels, maybe_vector(width), maybe_vector(width)},
          shape());
    case 10:
      return step(plan::Apply{count, function()}, shape());
    case 11:
      if (channels % 2 != 0) return;
      return step(plan::Gate{height, channels / 2, width, function()},
                  {height, channels / 2, width});
    case 12:
      if (sample_.chance(0.5)) {
        return step(plan::Add{count, slice(sample_.elements(1, positions, channels))}, shape());
      } else if (const auto other = maybe_value(count)) {
        return step(plan::Add{count, {}}, shape(), {*other});
      }
      return;
    case 13:
      return step(plan::Pad{positions, 2, channels}, {positions, channels + 2});
    case 14:
      return step(plan::Transpose{positions, channels}, {channels, positions});
    case 15: {
      if (channels % 3 != 0) return;
      const int64_t heads = part_of(channels / 3);
      return step(plan::Attend{positions, heads, channels / 3 / heads, sample_.chance(0.5)},
                  {positions, channels / 3});
    }
    default:
      return step(plan::Copy{count}, shape());
  }
}

void Sample::network(const std::string& name, int64_t inputs, int64_t steps) {
  NetworkBuilder builder(*this, name, {inputs});
  for (int64_t i = 0; i < steps; ++i) builder.random_step();
  const int64_t count = plan::numel(builder.shape());
  builder.step(plan::Multiply{1, count, 10, builder.panels(10, count, 1), {}}, {10});
  builder.finish();
}

void Sample::mlp(const std::vector<int64_t>& widths, int64_t in, int64_t out) {
  const int64_t most = *std::max_element(widths.begin(), widths.end());
  const size_t hidden = weight(most, in, 1), output = weight(out, most, 1);
  const size_t bias = elements(1, 1, most), last = elements(1, 1, out);
  for (const int64_t width : widths) {
    NetworkBuilder builder(*this, "w" + std::to_string(width), {in});
    const size_t first = builder.slice(hidden, width, in), shift = builder.slice(bias);
    builder.step(plan::Multiply{1, in, width, first, {{}, shift, Function::kRelu, {}, {}}},
                 {width});
    const size_t second = builder.slice(output, out, width), end = builder.slice(last);
    builder.step(plan::Multiply{1, width, out, second, {{}, end, {}, {}, {}}}, {out});
    builder.finish();
  }
}

void Sample::cnn(const std::vector<int64_t>& widths, const Pair& pool, const Pair& size,
                 const Pair& kernel) {
  constexpr int64_t kIn = 3;
  const int64_t most = *std::max_element(widths.begin(), widths.end());
  const plan::Window window{size, size, kernel, {1, 1}, {kernel[0] / 2, kernel[1] / 2}};
  const size_t first = weight(most, kIn, window.taps());
  const size_t second = weight(most, most, window.taps());
  const size_t bias = elements(1, 1, most);
  for (const int64_t width : widths) {
    NetworkBuilder builder(*this, "w" + std::to_string(width), {size[0], size[1], kIn});
    const auto convolve = [&](size_t tensor, int64_t in, const Pair& of) {
      const size_t slice = builder.slice(tensor, width, in), shift = builder.slice(bias);
      const plan::Convolve step{window, in, width, 1, slice, {{}, shift, Function::kRelu, {}, {}},
                                of};
      builder.step(step, {step.out_size()[0], step.out_size()[1], width});
    };
    convolve(first, kIn, {1, 1});
    convolve(second, width, pool);
    builder.finish();
  }
}

void Sample::transformer(const std::string& name, int64_t positions, int64_t heads,
                         int64_t head_dim, bool causal) {
  NetworkBuilder builder(*this, name, {positions});
  const int64_t features = heads * head_dim;
  const size_t table = builder.slice(elements(1, 20, features + 3));
  builder.step(plan::Embed{positions, features, 20, table}, {positions, features});
  const size_t place = builder.slice(elements(1, positions, features));
  builder.step(plan::Add{positions * features, place}, {positions, features});
  builder.step(
      plan::Multiply{
          positions, features, 3 * features, builder.panels(3 * features, features, 1), {}},
      {positions, 3 * features});
  builder.step(plan::Attend{positions, heads, head_dim, causal}, {positions, features});
  builder.step(plan::Multiply{positions, features, 7, builder.panels(7, features, 1), {}},
               {positions, 7});
  builder.finish();
}

std::string Sample::bytes() {
  runtime::place(file_);
  std::string result = runtime::header_of(file_);
  result.resize(static_cast<size_t>(file_.bytes), '\0');
  for (size_t t = 0; t < file_.tensors.size(); ++t) {
    const runtime::FileTensor& tensor = file_.tensors[t];
    for (size_t b = 0; b < tensor.boxes.size(); ++b) {
      if (tensor.boxes[b].bytes == 0) continue;
      std::vector<float> box = contents_[t];
      if (tensor.is_panels()) {
        const auto [out, in, taps] = sizes_[t];
        const size_t i = b / tensor.in_ends.size(), j = b % tensor.in_ends.size();
        const int64_t first = i == 0 ? 0 : tensor.out_ends[i - 1];
        const int64_t from = j == 0 ? 0 : tensor.in_ends[j - 1];
        box.assign(static_cast<size_t>(tensor.elements(b)), 0.0F);
        kernels::fill_panels({contents_[t].data() + (first * in + from) * taps,
                              {tensor.out_ends[i] - first, tensor.in_ends[j] - from, taps},
                              {in * taps, taps, 1}},
                             box.data());
      }
      char* to = result.data() + tensor.boxes[b].offset;
      for (const float each : box) {
        kernels::store(tensor.type, each, to);
        to += kernels::bytes_of(tensor.type);
      }
    }
  }
  return result;
}

void write(const std::string& path, const std::string& bytes) {
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  stream.close();
  if (!stream) throw std::runtime_error("cannot write " + path);
}

}  // namespace nsn::test
