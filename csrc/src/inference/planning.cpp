#include "inference/planning.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

namespace nsn::detail {

namespace {

using plan::Pair;
using plan::TensorPlace;
using plan::ValuePlace;

/// The function of an activation; that of a gated one is what it does to the gate. None: linear.
std::optional<plan::Function> function_of(const Activation& activation) {
  struct Visitor {
    using Result = std::optional<plan::Function>;
    Result operator()(const torch::enumtype::kLinear& /*a*/) const { return {}; }
    Result operator()(const torch::enumtype::kReLU& /*a*/) const { return plan::Function::kRelu; }
    Result operator()(const torch::enumtype::kGELU& /*a*/) const { return plan::Function::kGelu; }
    Result operator()(const torch::enumtype::kSiLU& /*a*/) const { return plan::Function::kSilu; }
    Result operator()(const torch::enumtype::kSigmoid& /*a*/) const {
      return plan::Function::kSigmoid;
    }
    Result operator()(const torch::enumtype::kTanh& /*a*/) const { return plan::Function::kTanh; }
    Result operator()(const enumtype::kGLU& /*a*/) const { return plan::Function::kSigmoid; }
    Result operator()(const enumtype::kReGLU& /*a*/) const { return plan::Function::kRelu; }
    Result operator()(const enumtype::kGeGLU& /*a*/) const { return plan::Function::kGelu; }
    Result operator()(const enumtype::kSwiGLU& /*a*/) const { return plan::Function::kSilu; }
  };
  return std::visit(Visitor(), activation);
}

/// Extents as those of two dimensions; one dimension is the second of two.
Pair pair_of(const std::vector<int64_t>& extents, int64_t first) {
  return extents.size() == 1 ? Pair{first, extents[0]} : Pair{extents[0], extents[1]};
}

/// (C, H, W) or (C, L): the extents behind the channels.
Pair size_of(const Shape& shape) { return pair_of({shape.begin() + 1, shape.end()}, 1); }

class Planner {
 public:
  Planner(const Program& program, size_t subnetwork, PackedTensors& tensors)
      : program_(program), subnetwork_(subnetwork), tensors_(tensors) {
    const auto& steps = program.steps();
    readers_.resize(steps.size() + 1);
    for (const size_t i : c10::irange(steps.size())) {
      for (const size_t value : steps[i].inputs) readers_[value].push_back(i);
    }
    is_done_.resize(steps.size());
    result_.plan.values.push_back({program.input(), plan::Memory::kInput});
    known_[0] = {0, false};
  }

  Planned make() {
    const auto& steps = program_.steps();
    for (at_ = 0; at_ < steps.size(); ++at_) {
      if (!is_done_[at_]) std::visit(*this, steps[at_].primitive);
    }
    // The output lies as the caller reads it, in memory of his.
    ValuePlace output = in_order(program_.output(), /*channels_last=*/false);
    if (output == 0) {
      const Shape& shape = program_.shape_of(program_.output());
      output = add(plan::Copy{plan::numel(shape)}, {output}, shape, "");
    }
    result_.plan.values[output].memory = plan::Memory::kOutput;
    result_.plan.values[output].shape = program_.shape_of(program_.output());
    result_.plan.place();
    return std::move(result_);
  }

  void operator()(const primitives::Product& /*p*/) {
    const Shape& in = shape(0);
    const Shape out = own_shape();
    const int64_t rows = plan::numel(in) / std::max<int64_t>(1, in.back());
    const ValuePlace x = input(0, false);
    plan::Multiply kernel{
        rows, in.back(), out.back(), tensor(read("weight", PackedForm::kProduct)), {}};
    kernel.epilogue = epilogue(out.size(), /*channels_last=*/false);
    makes(kernel, {x}, /*channels_last=*/false);
  }

  void operator()(const primitives::Convolution& p) {
    const Shape in = shape(0), out = own_shape();
    const ValuePlace x = input(0, true);
    const auto form = p.groups == 1 ? PackedForm::kConvolution : PackedForm::kTaps;
    const plan::Window window{size_of(in),          size_of(out),          kernel_size(),
                              pair_of(p.stride, 1), pair_of(p.padding, 0), pair_of(p.dilation, 1)};
    plan::Convolve kernel{window, in[0], out[0], p.groups, tensor(read("weight", form)), {}};
    kernel.epilogue = epilogue(1, /*channels_last=*/true);
    kernel.pool = pool_behind(kernel);
    makes(kernel, {x}, /*channels_last=*/true);
  }

  void operator()(const primitives::TransposedConvolution& p) {
    const Shape in = shape(0), out = own_shape();
    const ValuePlace x = input(0, true);
    const plan::Window window{size_of(out),         size_of(in),           kernel_size(),
                              pair_of(p.stride, 1), pair_of(p.padding, 0), pair_of(p.dilation, 1)};
    plan::ConvolveTransposed kernel{
        window, in[0], out[0], tensor(read("weight", PackedForm::kTapsTransposed)), {}};
    kernel.epilogue = epilogue(1, /*channels_last=*/true);
    makes(kernel, {x}, /*channels_last=*/true);
  }

  void operator()(const primitives::MaxPool& p) { pool(p, /*is_max=*/true); }
  void operator()(const primitives::AveragePool& p) { pool(p, /*is_max=*/false); }

  void operator()(const primitives::GlobalAverage& /*p*/) {
    const Shape& in = shape(0);
    const ValuePlace x = input(0, true);
    makes(plan::GlobalAverage{plan::numel(in) / std::max<int64_t>(1, in[0]), in[0]}, {x}, false);
  }

  void operator()(const primitives::Upsample& p) {
    const Shape& in = shape(0);
    if (p.factor == 1) return same(step().inputs[0]);
    const ValuePlace x = input(0, true);
    makes(plan::Upsample{size_of(in), p.factor, in[0], p.mode == "bilinear"}, {x}, true);
  }

  void operator()(const primitives::LayerNorm& p) { normalize_rows(p.eps, /*centred=*/true); }
  void operator()(const primitives::RMSNorm& p) { normalize_rows(p.eps, /*centred=*/false); }

  void operator()(const primitives::GroupNorm& p) {
    const Shape& in = shape(0);
    const ValuePlace x = input(0, true);
    makes(plan::NormalizeGroups{plan::numel(in) / std::max<int64_t>(1, in[0]), in[0], p.groups,
                                p.eps, vector("weight"), vector("bias")},
          {x}, true);
  }

  void operator()(const primitives::BatchNorm& /*p*/) { affine(/*dimension=*/0); }
  void operator()(const primitives::ScaleAndShift& p) { affine(dimension_of(p.dimension)); }

  void operator()(const primitives::Activate& p) {
    const auto function = function_of(p.function);
    if (!function) return same(step().inputs[0]);
    const auto [x, channels_last] = known_.at(step().inputs[0]);
    makes(plan::Apply{plan::numel(shape(0)), *function}, {x}, channels_last);
  }

  void operator()(const primitives::Gate& p) {
    const auto [x, channels_last] = known_.at(step().inputs[0]);
    const auto [outer, extent, inner] =
        around(shape(0), static_cast<size_t>(dimension_of(p.dimension)), channels_last);
    makes(plan::Gate{outer, extent / 2, inner, *function_of(p.function)}, {x}, channels_last);
  }

  void operator()(const primitives::Drop& /*p*/) { same(step().inputs[0]); }

  void operator()(const primitives::Add& /*p*/) {
    const int64_t count = plan::numel(shape(0));
    if (step().inputs.size() == 1) {
      const ValuePlace x = input(0, false);
      const auto weight = tensor(read("weight", PackedForm::kExact));
      return makes(plan::Add{count, weight}, {x}, false);
    }
    const bool channels_last = known_.at(step().inputs[0]).channels_last;
    makes(plan::Add{count, {}}, {input(0, channels_last), input(1, channels_last)}, channels_last);
  }

  void operator()(const primitives::Pad& p) {
    const Shape& in = shape(0);
    const auto [x, channels_last] = known_.at(step().inputs[0]);
    // In front of the last extent, behind which channels may lie.
    const int64_t inner = channels_last && in.size() > 1 ? in[0] : 1;
    const int64_t count = in.back() * inner;
    makes(plan::Pad{plan::numel(in) / std::max<int64_t>(1, count), p.before * inner, count}, {x},
          channels_last);
  }

  void operator()(const primitives::Reshape& /*p*/) {
    known_[at_ + 1] = {input(0, false), false};
    is_done_[at_] = true;
  }

  void operator()(const primitives::Embed& /*p*/) {
    const Operand& weight = *step().operand("weight");
    const Shape table = kept_shape(weight.slice);
    const ValuePlace x = input(0, false);
    TORCH_INTERNAL_ASSERT(x == 0, "what is embedded is the input");
    makes(plan::Embed{plan::numel(shape(0)), table[1], table[0],
                      tensor(tensors_.read(weight, PackedForm::kCopy, subnetwork_))},
          {x}, false);
  }

  void operator()(const primitives::Attend& p) {
    const Shape& in = shape(0);
    const ValuePlace x = input(0, false);
    makes(plan::Attend{in[0], p.heads, in[1] / (3 * p.heads), p.causal}, {x}, false);
  }

  void operator()(const primitives::Call& /*p*/) {
    const ValuePlace x = input(0, false);
    result_.calls.push_back(&step());
    makes(plan::Call{result_.calls.size() - 1}, {x}, false);
  }

 private:
  /// Where a value of the program is, and whether its channels lie behind its positions.
  struct Known {
    ValuePlace place;
    bool channels_last;
  };

  const Step& step() const { return program_.steps()[at_]; }
  const Shape& shape(size_t input) const { return program_.shape_of(step().inputs[input]); }
  Shape own_shape() const { return program_.shape_of(at_ + 1); }

  /// A dimension of a batch, counted from the end where negative, as one of a sample.
  static int64_t of_sample(int64_t dimension, size_t dims) {
    return dimension < 0 ? dimension + static_cast<int64_t>(dims) : dimension - 1;
  }
  int64_t dimension_of(int64_t dimension) const { return of_sample(dimension, shape(0).size()); }

  Pair kernel_size() const {
    const Shape weight = kept_shape(step().operand("weight")->slice);
    return pair_of({weight.begin() + 2, weight.end()}, 1);
  }

  // ---- values

  /// A new value, made by a kernel.
  ValuePlace add(plan::Kernel kernel, std::vector<ValuePlace> inputs, Shape lies,
                 std::string block) {
    const ValuePlace place = result_.plan.values.size();
    result_.plan.values.push_back({std::move(lies)});
    result_.plan.steps.push_back({std::move(block), std::move(kernel), std::move(inputs), place});
    return place;
  }

  static Shape as_it_lies(const Shape& shape, bool channels_last) {
    if (!channels_last || shape.size() < 2) return shape;
    Shape result(shape.begin() + 1, shape.end());
    result.push_back(shape[0]);
    return result;
  }

  /// A value of the program, lying as asked for.
  ValuePlace in_order(size_t value, bool channels_last) {
    const Known known = known_.at(value);
    const Shape& shape = program_.shape_of(value);
    const int64_t positions =
        shape.empty() ? 1 : plan::numel(shape) / std::max<int64_t>(1, shape[0]);
    if (known.channels_last == channels_last || shape.size() < 2 || shape[0] == 1 ||
        positions == 1) {
      return known.place;
    }
    const auto [found, is_new] = turned_.try_emplace(value, ValuePlace{0});
    if (is_new) {
      const plan::Transpose kernel = channels_last ? plan::Transpose{shape[0], positions}
                                                   : plan::Transpose{positions, shape[0]};
      found->second = add(kernel, {known.place}, as_it_lies(shape, channels_last), "");
    }
    return found->second;
  }
  ValuePlace input(size_t i, bool channels_last) {
    return in_order(step().inputs[i], channels_last);
  }

  /// What the last step of those fused into this one makes.
  void makes(plan::Kernel kernel, std::vector<ValuePlace> inputs, bool channels_last) {
    const size_t value = std::max(last_, at_) + 1;
    last_ = 0;
    is_done_[at_] = true;
    const Shape& shape = program_.shape_of(value);
    known_[value] = {
        add(std::move(kernel), std::move(inputs), as_it_lies(shape, channels_last), step().block),
        channels_last};
  }

  void same(size_t value) {
    known_[at_ + 1] = known_.at(value);
    is_done_[at_] = true;
  }

  // ---- tensors

  TensorPlace tensor(const PackedSlice* slice, std::optional<int64_t> row = {}) {
    result_.tensors.push_back({slice, row});
    return result_.tensors.size() - 1;
  }
  const PackedSlice* read(const char* role, PackedForm form) const {
    return tensors_.read(*step().operand(role), form, subnetwork_);
  }
  std::optional<TensorPlace> vector_of(const Operand* operand) {
    if (operand == nullptr) return {};
    return tensor(tensors_.read(*operand, PackedForm::kCopy, subnetwork_));
  }
  std::optional<TensorPlace> vector(const char* role) { return vector_of(step().operand(role)); }

  /// The scale and the shift that steps of norms, scales and shifts are, one after the other,
  /// behind a bias.
  std::pair<std::optional<TensorPlace>, std::optional<TensorPlace>> folded(
      const Operand* bias, const std::vector<const Step*>& steps) {
    if (steps.empty()) return {std::nullopt, vector_of(bias)};
    const bool is_scale = std::holds_alternative<primitives::ScaleAndShift>(steps[0]->primitive);
    if (steps.size() == 1 && is_scale && bias == nullptr) {
      return {vector_of(steps[0]->operand("scale")), vector_of(steps[0]->operand("bias"))};
    }
    const PackedSlice* both = tensors_.read_folded(bias, steps, subnetwork_);
    const TensorPlace scale = tensor(both, 0);
    return {scale, tensor(both, 1)};
  }

  // ---- epilogues

  /// The step that alone reads the value, which is behind the one that makes it.
  std::optional<size_t> only_reader(size_t value) const {
    if (value == program_.output() || readers_[value].size() != 1) return {};
    return readers_[value][0];
  }

  /// Whether a step is a scale and a shift along a dimension of a sample.
  static bool is_affine(const Step& step, size_t dimension, size_t dims) {
    if (std::holds_alternative<primitives::BatchNorm>(step.primitive)) return dimension == 0;
    const auto* scaled = std::get_if<primitives::ScaleAndShift>(&step.primitive);
    return scaled != nullptr &&
           of_sample(scaled->dimension, dims) == static_cast<int64_t>(dimension);
  }

  /// What stands behind this step and can be its epilogue; those steps are done with.
  /// `dimension`: of the features among those of a sample, counted from 1.
  plan::Epilogue epilogue(size_t dimension, bool channels_last) {
    const auto& steps = program_.steps();
    const size_t dims = own_shape().size();
    plan::Epilogue result;
    size_t last = at_;
    const auto next = [&]() -> const Step* {
      const auto reader = only_reader(last + 1);
      return reader ? &steps[*reader] : nullptr;
    };
    const auto take = [&] {
      last = *only_reader(last + 1);
      is_done_[last] = true;
    };
    const auto skip_dropouts = [&] {
      while (next() != nullptr && std::holds_alternative<primitives::Drop>(next()->primitive))
        take();
    };
    const auto take_function = [&](std::optional<plan::Function>& function) {
      skip_dropouts();
      const auto* activate =
          next() == nullptr ? nullptr : std::get_if<primitives::Activate>(&next()->primitive);
      if (activate == nullptr) return;
      function = function_of(activate->function);
      take();
    };

    std::vector<const Step*> scales;
    skip_dropouts();
    while (next() != nullptr && is_affine(*next(), dimension - 1, dims)) {
      scales.push_back(next());
      take();
      skip_dropouts();
    }
    std::tie(result.scale, result.shift) = folded(step().operand("bias"), scales);
    take_function(result.function);
    skip_dropouts();
    const Step* sum = next();
    if (sum != nullptr && std::holds_alternative<primitives::Add>(sum->primitive) &&
        sum->inputs.size() == 2 && sum->inputs[0] != sum->inputs[1]) {
      const size_t other = sum->inputs[sum->inputs[0] == last + 1 ? 1 : 0];
      const auto found = known_.find(other);
      if (found != known_.end()) {
        result.residual = in_order(other, channels_last);
        take();
        take_function(result.after);
      }
    }
    last_ = last;
    return result;
  }

  /// The max pool behind a convolution and its epilogue, where the kernel can do it; that step is
  /// done with.
  Pair pool_behind(const plan::Convolve& kernel) {
    constexpr Pair kNone{1, 1};
    const auto reader = only_reader(last_ + 1);
    if (!reader) return kNone;
    const auto* p = std::get_if<primitives::MaxPool>(&program_.steps()[*reader].primitive);
    if (p == nullptr || p->stride != p->kernel) return kNone;
    const Pair pool = pair_of(p->kernel, 1);
    if (pair_of(p->padding, 0) != Pair{0, 0} || !kernel.may_pool(pool)) return kNone;
    last_ = *reader;
    is_done_[last_] = true;
    return pool;
  }

  // ---- kinds of kernels

  template <typename Primitive>
  void pool(const Primitive& p, bool is_max) {
    const Shape in = shape(0);
    const ValuePlace x = input(0, true);
    const plan::Window window{size_of(in), size_of(own_shape()), pair_of(p.kernel, 1),
                              pair_of(p.stride, 1), pair_of(p.padding, 0)};
    makes(plan::Pool{window, in[0], is_max}, {x}, true);
  }

  void normalize_rows(double eps, bool centred) {
    const Shape& in = shape(0);
    const ValuePlace x = input(0, false);
    makes(plan::NormalizeRows{plan::numel(in) / std::max<int64_t>(1, in.back()), in.back(), eps,
                              centred, vector("weight"), vector("bias")},
          {x}, false);
  }

  /// (outer, extent, inner) around a dimension of a sample, as it lies.
  static std::tuple<int64_t, int64_t, int64_t> around(const Shape& shape, size_t dimension,
                                                      bool channels_last) {
    const Shape lies = as_it_lies(shape, channels_last);
    const size_t at = !channels_last || shape.size() < 2 ? dimension
                      : dimension == 0                   ? lies.size() - 1
                                                         : dimension - 1;
    const auto middle = lies.begin() + static_cast<std::ptrdiff_t>(at);
    return {plan::numel({lies.begin(), middle}), *middle, plan::numel({middle + 1, lies.end()})};
  }

  void affine(int64_t dimension) {
    const auto [x, channels_last] = known_.at(step().inputs[0]);
    const auto [outer, extent, inner] =
        around(shape(0), static_cast<size_t>(dimension), channels_last);
    const auto [scale, shift] = folded(nullptr, {&step()});
    makes(plan::ScaleAndShift{outer, extent, inner, scale, shift}, {x}, channels_last);
  }

  const Program& program_;
  size_t subnetwork_;
  PackedTensors& tensors_;
  /// The steps that read each value.
  std::vector<std::vector<size_t>> readers_;
  std::vector<bool> is_done_;
  /// The step under way, and the last of those fused into it.
  size_t at_ = 0, last_ = 0;
  std::map<size_t, Known> known_;
  /// Values that lie the other way round too.
  std::map<size_t, ValuePlace> turned_;
  Planned result_;
};

/// Whether all that reads a value, or the same numbers in another shape, embeds it.
bool is_only_embedded(const Program& program, size_t value) {
  if (value == program.output()) return false;
  const auto& steps = program.steps();
  for (const size_t i : c10::irange(steps.size())) {
    if (std::count(steps[i].inputs.begin(), steps[i].inputs.end(), value) == 0) continue;
    const Primitive& reader = steps[i].primitive;
    const bool is_same = std::holds_alternative<primitives::Reshape>(reader) ||
                         std::holds_alternative<primitives::Drop>(reader);
    if (!(is_same && is_only_embedded(program, i + 1)) &&
        !std::holds_alternative<primitives::Embed>(reader)) {
      return false;
    }
  }
  return true;
}

}  // namespace

bool has_plan(const Program& program) {
  bool embeds = !at::isFloatingType(program.dtype());
  for (const Step& step : program.steps()) {
    embeds = embeds || std::holds_alternative<primitives::Embed>(step.primitive);
    // Numbers that a block of one's own makes have no place in an arena of float32.
    const auto* call = std::get_if<primitives::Call>(&step.primitive);
    if (call != nullptr && call->fit->output.is_integral) return false;
  }
  return !embeds || is_only_embedded(program, 0);
}

Planned make_plan(const Program& program, size_t subnetwork, PackedTensors& tensors) {
  return Planner(program, subnetwork, tensors).make();
}

}  // namespace nsn::detail
