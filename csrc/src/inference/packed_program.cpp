#include "inference/packed_program.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <c10/util/irange.h>

#include <array>
#include <numeric>
#include <tuple>
#include <utility>

#include "inference/evaluate.h"
#include "nsn/blocks/block.h"
#include "operations/elementwise.h"
#include "operations/kernels_for.h"
#include "operations/lanes.h"

namespace nsn::detail {

namespace {

using Slices = std::vector<std::pair<std::string, const PackedSlice*>>;

/// What follows a product or convolution in the same pass over memory.
struct PackedEpilogue {
  const PackedSlice *scale = nullptr, *bias = nullptr;
  Activation activation = torch::enumtype::kLinear();
  /// The dimension of the features.
  int64_t dimension = -1;

  /// For the panels' kernels, which have ReLU alone.
  kernels::Epilogue of_kernel() const {
    return {PackedSlice::data(scale), PackedSlice::data(bias),
            std::holds_alternative<torch::enumtype::kReLU>(activation)};
  }
  /// The activation where the kernel has it not yet; in place where there is a kernel for it. y
  /// lies without gaps in some order.
  at::Tensor behind_kernel(const at::Tensor& y) const {
    if (std::holds_alternative<torch::enumtype::kReLU>(activation)) return y;
    if (std::holds_alternative<torch::enumtype::kGELU>(activation)) {
      const at::Tensor flat = y.as_strided({y.numel()}, {1});
      gelu_forward(flat, /*bias=*/{}, /*out=*/flat, /*derivative=*/{});
      return y;
    }
    return activate(y, activation, dimension);
  }
  /// All of it by plain operations.
  at::Tensor plain(at::Tensor y) const {
    if (scale != nullptr) y = y * along(scale->plain, dimension, y);
    if (bias != nullptr) y = y + along(bias->plain, dimension, y);
    return activate(y, activation, dimension);
  }
};

PackedProgram::Operation product(const PackedSlice* weight, PackedEpilogue epilogue) {
  return [weight, epilogue = std::move(epilogue)](std::vector<at::Tensor>& inputs) {
    if (weight->panels == nullptr) return epilogue.plain(at::linear(inputs[0], weight->plain));
    return epilogue.behind_kernel(
        weight->panels->multiply(inputs[0], weight->rows, epilogue.of_kernel()));
  };
}

PackedProgram::Operation convolution(const PackedSlice* weight, PackedEpilogue epilogue,
                                     const primitives::Convolution& shape) {
  const bool is_line = shape.stride.size() == 1;  // one dimension as the second of two
  const auto two = [&](const std::vector<int64_t>& extents, int64_t first) {
    return is_line ? std::array<int64_t, 2>{first, extents[0]}
                   : std::array<int64_t, 2>{extents[0], extents[1]};
  };
  const PackedGeometry packed{two(shape.stride, 1), two(shape.padding, 0), two(shape.dilation, 1)};
  return [weight, epilogue = std::move(epilogue), shape, packed,
          is_line](std::vector<at::Tensor>& inputs) {
    const at::Tensor& x = inputs[0];
    if (weight->panels == nullptr) {
      return epilogue.plain(evaluate(shape, inputs, {{"weight", weight->plain}}));
    }
    at::Tensor y = weight->panels->convolve(is_line ? x.unsqueeze(2) : x, weight->rows, packed,
                                            epilogue.of_kernel());
    return epilogue.behind_kernel(is_line ? y.squeeze(2) : y);
  };
}

PackedProgram::Operation batch_norm(const PackedSlice* folded, PackedTensors& tensors) {
  const auto parts = std::make_shared<std::pair<at::Tensor, at::Tensor>>();
  tensors.when_filled([=] { *parts = {folded->plain.select(0, 0), folded->plain.select(0, 1)}; });
  return [parts](std::vector<at::Tensor>& inputs) {
    const at::Tensor& x = inputs[0];
    const auto& [scale, shift] = *parts;
    if (!has_kernels(x) || !has_kernels(scale)) return x * along(scale, 1, x) + along(shift, 1, x);
    const at::Tensor rows = x.movedim(1, -1).contiguous();
    at::Tensor y = at::empty_like(rows);
    scale_rows(rows, scale, shift, y);
    return y.movedim(-1, 1);
  };
}

/// A block that is not nsn's, as one lane of a pass by itself.
PackedProgram::Operation call(const Step& step, const std::string& name, size_t subnetwork,
                              const Slices& slices, PackedTensors& tensors) {
  const auto& own = std::get<primitives::Call>(step.primitive);
  std::vector<ParameterPlace> places;
  for (const size_t p : c10::irange(slices.size())) {
    // A private parameter is there in its own width; of others the block takes its slice.
    const bool is_private = full_shape(step.operands[p].slice) != full_shape(own.fit->slices[p]);
    places.push_back({p, is_private});
  }
  const auto table = std::make_shared<std::vector<at::Tensor>>();
  tensors.when_filled([=] {
    for (const auto& [role, slice] : slices) {
      static_cast<void>(role);
      table->push_back(slice->plain);
    }
  });
  return [block = own.block, fit = own.fit, path = step.block, name, subnetwork,
          places = std::move(places), table](std::vector<at::Tensor>& inputs) {
    const BlockPass pass{{{{name, 0}, subnetwork, fit.get(), places.data(), 0, 1}},
                         merge::sum(),
                         /*training=*/false,
                         /*calibrating=*/false,
                         /*seed=*/0,
                         /*memory=*/{},
                         *table,
                         /*tied=*/nullptr,
                         path};
    return block->joint(inputs, pass)[0];
  };
}

PackedProgram::Operation plain(const Primitive& primitive, const Slices& slices,
                               PackedTensors& tensors) {
  const auto operands = std::make_shared<Operands>();
  tensors.when_filled([=] {
    for (const auto& [role, slice] : slices) (*operands)[role] = slice->plain;
  });
  return [primitive, operands](std::vector<at::Tensor>& inputs) {
    return evaluate(primitive, std::move(inputs), *operands);
  };
}

/// Turns the steps of a program into operations, several into one where they can be.
class Packing {
 public:
  Packing(const Program& program, const std::string& name, size_t subnetwork,
          PackedTensors& tensors)
      : program_(program), name_(name), subnetwork_(subnetwork), tensors_(tensors) {
    readers_.resize(program.steps().size() + 1, 0);
    for (const Step& step : program.steps()) {
      for (const size_t value : step.inputs) ++readers_[value];
    }
    ++readers_[program.output()];
  }

  /// The operation that step `i` begins, and the place of the last step in it.
  std::pair<PackedProgram::Operation, size_t> at(size_t i) const {
    const Step& step = program_.steps()[i];
    if (std::holds_alternative<primitives::Product>(step.primitive)) {
      const auto [epilogue, last] = epilogue_from(i, -1);
      return {product(read(step, "weight", PackedForm::kProduct), epilogue), last};
    }
    if (const auto* shape = std::get_if<primitives::Convolution>(&step.primitive)) {
      const auto [epilogue, last] = epilogue_from(i, 1);
      // One sum over all channels; a convolution in groups has several.
      const auto form = shape->groups == 1 ? PackedForm::kConvolution : PackedForm::kCopy;
      return {convolution(read(step, "weight", form), epilogue, *shape), last};
    }
    if (std::holds_alternative<primitives::BatchNorm>(step.primitive)) {
      return {batch_norm(tensors_.read_norm(step, subnetwork_), tensors_), i};
    }
    Slices slices;
    if (const auto* own = std::get_if<primitives::Call>(&step.primitive)) {
      if (!own->block->module()) {  // which holds its tensors itself
        for (Operand operand : step.operands) {
          operand.slice = whole(full_shape(operand.slice));
          slices.emplace_back(operand.role, tensors_.read(operand, PackedForm::kCopy, subnetwork_));
        }
      }
      return {call(step, name_, subnetwork_, slices, tensors_), i};
    }
    for (const Operand& operand : step.operands) {
      slices.emplace_back(operand.role, tensors_.read(operand, PackedForm::kCopy, subnetwork_));
    }
    return {plain(step.primitive, slices, tensors_), i};
  }

 private:
  const PackedSlice* read(const Step& step, const char* role, PackedForm form) const {
    const Operand* operand = step.operand(role);
    return operand == nullptr ? nullptr : tensors_.read(*operand, form, subnetwork_);
  }

  /// What stands behind step `i` and can be its epilogue, and the last step of it.
  std::pair<PackedEpilogue, size_t> epilogue_from(size_t i, int64_t dimension) const {
    const auto& steps = program_.steps();
    PackedEpilogue result;
    result.dimension = dimension;
    result.bias = read(steps[i], "bias", PackedForm::kCopy);
    size_t last = i;
    // Whether the next step reads what is so far, and nobody else does.
    const auto follows = [&] {
      return last + 1 < steps.size() && readers_[last + 1] == 1 &&
             steps[last + 1].inputs == std::vector<size_t>{last + 1};
    };
    if (follows() && result.bias == nullptr) {
      const auto* scaled = std::get_if<primitives::ScaleAndShift>(&steps[last + 1].primitive);
      if (scaled != nullptr && scaled->dimension == dimension) {
        ++last;
        result.scale = read(steps[last], "scale", PackedForm::kCopy);
        result.bias = read(steps[last], "bias", PackedForm::kCopy);
      }
    }
    if (!follows()) return {result, last};
    if (const auto* activate = std::get_if<primitives::Activate>(&steps[last + 1].primitive)) {
      result.activation = activate->function;
      ++last;
    } else if (const auto* gate = std::get_if<primitives::Gate>(&steps[last + 1].primitive)) {
      if (gate->dimension != dimension) return {result, last};
      result.activation = gate->function;
      ++last;
    }
    return {result, last};
  }

  const Program& program_;
  const std::string& name_;
  size_t subnetwork_;
  PackedTensors& tensors_;
  /// How many steps read each value; the caller reads the output.
  std::vector<size_t> readers_;
};

}  // namespace

PackedProgram::PackedProgram(const Program& program, const std::string& name, size_t subnetwork,
                             PackedTensors& tensors) {
  const Packing packing(program, name, subnetwork, tensors);
  const auto& steps = program.steps();
  // What stands for each value: itself, but for steps that do nothing in inference.
  std::vector<size_t> value(steps.size() + 1);
  std::iota(value.begin(), value.end(), size_t{0});
  for (size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    if (std::holds_alternative<primitives::Drop>(step.primitive)) {
      value[i + 1] = value[step.inputs[0]];
      continue;
    }
    PackedStep packed{{}, {}, 0};
    for (const size_t input : step.inputs) packed.inputs.push_back(value[input]);
    size_t last = i;
    std::tie(packed.run, last) = packing.at(i);
    packed.output = last + 1;
    steps_.push_back(std::move(packed));
    i = last;
  }
  output_ = value[program.output()];
  last_use_.assign(steps.size() + 1, steps_.size());
  for (const size_t i : c10::irange(steps_.size())) {
    for (const size_t input : steps_[i].inputs) last_use_[input] = i;
  }
  last_use_[output_] = steps_.size();
}

at::Tensor PackedProgram::operator()(const at::Tensor& x) const {
  std::vector<at::Tensor> values(last_use_.size());
  // Kernels read memory: a sign that torch has yet to apply would be lost.
  values[0] = x.is_neg() ? x.resolve_neg() : x;
  std::vector<at::Tensor> inputs;
  for (const size_t i : c10::irange(steps_.size())) {
    inputs.clear();
    for (const size_t input : steps_[i].inputs) inputs.push_back(values[input]);
    for (const size_t input : steps_[i].inputs) {
      if (last_use_[input] == i) values[input].reset();
    }
    values[steps_[i].output] = steps_[i].run(inputs);
  }
  return own_memory(std::move(values[output_]));
}

}  // namespace nsn::detail
