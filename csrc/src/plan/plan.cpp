#include "plan/plan.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <ostream>
#include <string>
#include <utility>

namespace nsn::plan {

namespace {

constexpr auto kBytes = static_cast<int64_t>(sizeof(float));

void write(std::ostream& stream, const Shape& shape) {
  stream << '(';
  for (size_t i = 0; i < shape.size(); ++i) stream << (i == 0 ? "" : ", ") << shape[i];
  stream << ')';
}

/// What a kernel's attributes are called.
class Attributes {
 public:
  std::vector<std::string> all;

  void operator()(const Multiply& k) { after(k.epilogue); }
  void operator()(const Convolve& k) {
    window(k.window);
    if (k.groups != 1) number("groups", k.groups);
    after(k.epilogue);
    if (k.pools()) pair("max", k.pool);
  }
  void operator()(const ConvolveTransposed& k) {
    window(k.window);
    after(k.epilogue);
  }
  void operator()(const Pool& k) {
    all.emplace_back(k.is_max ? "max" : "mean");
    window(k.window);
  }
  void operator()(const Upsample& k) { all.emplace_back(k.is_bilinear ? "bilinear" : "nearest"); }
  void operator()(const NormalizeGroups& k) { number("groups", k.groups); }
  void operator()(const Apply& k) { all.emplace_back(name_of(k.function)); }
  void operator()(const Gate& k) { all.emplace_back(name_of(k.function)); }
  void operator()(const Attend& k) {
    number("heads", k.heads);
    if (k.causal) all.emplace_back("causal");
  }
  template <typename Other>
  void operator()(const Other& /*k*/) {}

 private:
  void number(const char* name, int64_t value) {
    all.push_back(name + (' ' + std::to_string(value)));
  }
  void pair(const char* name, const Pair& extents) {
    number(name, extents[0]);
    all.back() += 'x' + std::to_string(extents[1]);
  }
  void window(const Window& at) {
    pair("kernel", at.kernel);
    if (at.stride != Pair{1, 1}) pair("stride", at.stride);
    if (at.padding != Pair{0, 0}) pair("padding", at.padding);
    if (at.dilation != Pair{1, 1}) pair("dilation", at.dilation);
  }
  void after(const Epilogue& epilogue) {
    if (epilogue.scale) all.emplace_back("scaled");
    if (epilogue.shift) all.emplace_back("shifted");
    if (epilogue.function) all.emplace_back(name_of(*epilogue.function));
    if (epilogue.residual) all.push_back("+ %" + std::to_string(*epilogue.residual));
    if (epilogue.after) all.emplace_back(name_of(*epilogue.after));
  }
};

/// The elements of a kernel's weight, and how often each takes part in a multiply-add of a sample.
class Work {
 public:
  int64_t weight = 0;
  double uses = 0;

  void operator()(const Multiply& k) { set(k.in * k.out, k.rows); }
  void operator()(const Convolve& k) { set(k.window.taps() * (k.in / k.groups) * k.out, k.rows()); }
  void operator()(const ConvolveTransposed& k) {
    set(k.window.taps() * k.in * k.out, k.window.outputs());
  }
  template <typename Other>
  void operator()(const Other& /*k*/) {}

 private:
  void set(int64_t elements, int64_t positions) {
    weight = elements;
    uses = static_cast<double>(positions);
  }
};

}  // namespace

int64_t numel(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

const char* name_of(Function function) {
  switch (function) {
    case Function::kRelu:
      return "relu";
    case Function::kGelu:
      return "gelu";
    case Function::kSilu:
      return "silu";
    case Function::kSigmoid:
      return "sigmoid";
    default:
      return "tanh";
  }
}

const char* name_of(const Kernel& kernel) {
  // In the order of the variant's alternatives.
  static constexpr std::array<const char*, std::variant_size_v<Kernel>> kNames = {
      "multiply",
      "convolve",
      "convolve_transposed",
      "pool",
      "global_average",
      "upsample",
      "normalize_rows",
      "normalize_groups",
      "scale_and_shift",
      "apply",
      "gate",
      "add",
      "pad",
      "transpose",
      "copy",
      "embed",
      "attend",
      "call"};
  return kNames[kernel.index()];
}

std::vector<std::string> attributes_of(const Kernel& kernel) {
  Attributes result;
  std::visit(result, kernel);
  return std::move(result.all);
}

std::vector<ValuePlace> read_by(const Step& step) {
  std::vector<ValuePlace> result = step.inputs;
  const auto add = [&](const auto& kernel) {
    if constexpr (requires { kernel.epilogue; }) {
      if (kernel.epilogue.residual) result.push_back(*kernel.epilogue.residual);
    }
  };
  std::visit(add, step.kernel);
  return result;
}

void Plan::place() {
  scratch = outputs = weights = 0;
  flops = 0;
  embeds = calls = false;
  inputs = numel(values[0].shape);
  for (const Value& value : values) {
    if (value.memory == Memory::kOutput) outputs = numel(value.shape);
  }
  for (const Step& step : steps) {
    embeds = embeds || std::holds_alternative<Embed>(step.kernel);
    calls = calls || std::holds_alternative<Call>(step.kernel);
    Work work;
    std::visit(work, step.kernel);
    weights += work.weight;
    flops += 2 * static_cast<double>(work.weight) * work.uses;
    if (const auto* attend = std::get_if<Attend>(&step.kernel)) {
      const auto positions = static_cast<double>(attend->positions);
      flops += 4 * positions * positions * static_cast<double>(attend->heads * attend->head_dim);
      scratch = std::max(scratch, in_lines(attend->scores()) + in_lines(attend->panel()));
    }
  }
  struct Life {
    ValuePlace value;
    size_t first, last;
    int64_t size;
  };
  std::vector<size_t> last_read(values.size(), 0);
  for (size_t i = 0; i < steps.size(); ++i) {
    for (const ValuePlace value : read_by(steps[i])) last_read[value] = i;
  }
  std::vector<Life> lives;
  for (size_t i = 0; i < steps.size(); ++i) {
    const ValuePlace output = steps[i].output;
    if (values[output].memory != Memory::kArena) continue;
    lives.push_back(
        {output, i, std::max(i, last_read[output]), in_lines(numel(values[output].shape))});
  }
  // The largest first, each into the lowest gap among those that live at the same time.
  std::stable_sort(lives.begin(), lives.end(),
                   [](const Life& a, const Life& b) { return a.size > b.size; });
  arena = 0;
  std::vector<Life> placed;
  for (const Life& life : lives) {
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (const Life& other : placed) {
      if (other.first > life.last || other.last < life.first) continue;
      const int64_t begin = values[other.value].offset;
      taken.emplace_back(begin, begin + other.size);
    }
    std::sort(taken.begin(), taken.end());
    int64_t offset = 0;
    for (const auto& [begin, end] : taken) {
      if (offset + life.size <= begin) break;
      offset = std::max(offset, end);
    }
    values[life.value].offset = offset;
    arena = std::max(arena, offset + life.size);
    placed.push_back(life);
  }
}

std::ostream& operator<<(std::ostream& stream, const Plan& plan) {
  stream << "%0: ";
  write(stream, plan.values[0].shape);
  stream << '\n';
  for (const Step& step : plan.steps) {
    stream << '%' << step.output << " = " << name_of(step.kernel) << '(';
    for (size_t i = 0; i < step.inputs.size(); ++i) {
      stream << (i == 0 ? "%" : ", %") << step.inputs[i];
    }
    for (const std::string& each : attributes_of(step.kernel)) stream << ", " << each;
    stream << ") -> ";
    const Value& output = plan.values[step.output];
    write(stream, output.shape);
    if (output.memory == Memory::kOutput) {
      stream << " the output";
    } else {
      stream << " at " << kBytes * output.offset;
    }
    if (!step.block.empty()) stream << "  # " << step.block;
    stream << '\n';
  }
  const int64_t bytes = kBytes * plan.arena;
  return stream << "arena: " << bytes << " bytes a sample; " << static_cast<int64_t>(plan.flops)
                << " FLOPs a sample\n";
}

}  // namespace nsn::plan
