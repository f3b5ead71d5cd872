#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "inference/evaluate.h"
#include "nsn/description/lower.h"
#include "nsn/extract/extract.h"
#include "nsn/network/network.h"

namespace nsn {

namespace {

namespace nn = torch::nn;
using namespace primitives;  // NOLINT(google-build-using-namespace)

/// Puts torch's default generator back: new torch::nn modules draw their weights.
class KeepsGenerator {
 public:
  KeepsGenerator() : generator_(at::detail::getDefaultCPUGenerator()) {
    const std::lock_guard<std::mutex> lock(generator_.mutex());
    state_ = generator_.get_state();
  }
  ~KeepsGenerator() {
    const std::lock_guard<std::mutex> lock(generator_.mutex());
    generator_.set_state(state_);
  }
  KeepsGenerator(const KeepsGenerator&) = delete;
  KeepsGenerator& operator=(const KeepsGenerator&) = delete;

 private:
  at::Generator generator_;
  at::Tensor state_;
};

/// The tensors of a step for which torch::nn has no module.
struct Tensors : nn::Module {
  using nn::Module::Module;
};

}  // namespace

/// Turns steps into modules and functions: a case for each primitive.
class ExtractedImpl::Writer {
 public:
  using Run = std::function<at::Tensor(at::TensorList)>;

  explicit Writer(ExtractedImpl& to) : to_(to), is_there_(to.tensors_.size(), false) {
    for (const Step& step : to.program_.steps()) ++steps_of_block_[step.block];
  }

  Run write(const Step& step) {
    step_ = &step;
    return std::visit(*this, step.primitive);
  }

  Run operator()(const Product& p) {
    // A weight that an embedding has already stays one parameter.
    if (is_there_[step_->operand("weight")->place]) return plain(p);
    const Shape weight = kept_shape(step_->operand("weight")->slice);
    return module(nn::Linear(nn::LinearOptions(weight[1], weight[0]).bias(has("bias"))));
  }
  Run operator()(const Convolution& p) {
    return p.stride.size() == 1 ? convolution<nn::Conv1d, 1>(p) : convolution<nn::Conv2d, 2>(p);
  }
  Run operator()(const TransposedConvolution& p) {
    const Shape weight = kept_shape(step_->operand("weight")->slice);
    auto options = nn::ConvTranspose2dOptions(weight[0], weight[1], {weight[2], weight[3]})
                       .stride(p.stride)
                       .padding(p.padding)
                       .output_padding(p.output_padding)
                       .bias(has("bias"));
    return module(nn::ConvTranspose2d(options.dilation(p.dilation)));
  }
  Run operator()(const LayerNorm& p) {
    // torch's has a bias wherever it has a weight.
    if (has("weight") != has("bias")) return plain(p);
    const int64_t features = step_->shape.back();
    return module(
        nn::LayerNorm(nn::LayerNormOptions({features}).eps(p.eps).elementwise_affine(has("bias"))));
  }
  Run operator()(const GroupNorm& p) {
    auto options = nn::GroupNormOptions(p.groups, step_->shape[0]).eps(p.eps);
    return module(nn::GroupNorm(options.affine(has("weight"))));
  }
  Run operator()(const BatchNorm& p) {
    switch (step_->shape.size()) {
      case 1:
      case 2:
        return batch_norm<nn::BatchNorm1d>(p);
      case 3:
        return batch_norm<nn::BatchNorm2d>(p);
      case 4:
        return batch_norm<nn::BatchNorm3d>(p);
      default:
        refuse(" has samples of " + std::to_string(step_->shape.size()) +
               " dimensions, but torch::nn's batch norms end at 4. Flatten some of them.");
    }
  }
  Run operator()(const Embed& p) {
    const Shape weight = kept_shape(step_->operand("weight")->slice);
    const bool takes = to_.program_.dtype() == at::kLong || to_.program_.dtype() == at::kInt;
    if (!takes || is_there_[step_->operand("weight")->place]) return plain(p);
    return module(nn::Embedding(nn::EmbeddingOptions(weight[0], weight[1])));
  }
  Run operator()(const Drop& p) { return module(nn::Dropout(p.probability)); }
  Run operator()(const Activate& p) {
    if (std::holds_alternative<torch::enumtype::kReLU>(p.function)) return module(nn::ReLU());
    if (std::holds_alternative<torch::enumtype::kGELU>(p.function)) return module(nn::GELU());
    if (std::holds_alternative<torch::enumtype::kSiLU>(p.function)) return module(nn::SiLU());
    if (std::holds_alternative<torch::enumtype::kSigmoid>(p.function)) return module(nn::Sigmoid());
    if (std::holds_alternative<torch::enumtype::kTanh>(p.function)) return module(nn::Tanh());
    return module(nn::Identity());
  }
  Run operator()(const Call& p) {
    refuse(" (" + p.type +
           ") is not one of nsn's own, so it is unknown what it is in torch::nn. "
           "Use net->view, or a Network of what nsn::extract_blocks gives.");
  }
  /// What torch::nn has no module for, or one that adds nothing to the operation.
  Run operator()(const Pad& p) { return plain(p); }
  Run operator()(const MaxPool& p) { return plain(p); }
  Run operator()(const AveragePool& p) { return plain(p); }
  Run operator()(const GlobalAverage& p) { return plain(p); }
  Run operator()(const Upsample& p) { return plain(p); }
  Run operator()(const RMSNorm& p) { return plain(p); }
  Run operator()(const ScaleAndShift& p) { return plain(p); }
  Run operator()(const Gate& p) { return plain(p); }
  Run operator()(const Add& p) { return plain(p); }
  Run operator()(const Reshape& p) { return plain(p); }
  Run operator()(const Attend& p) { return plain(p); }

 private:
  bool has(const char* role) const { return step_->operand(role) != nullptr; }

  template <typename Module, size_t D>
  Run convolution(const Convolution& p) {
    const Shape weight = kept_shape(step_->operand("weight")->slice);
    const std::vector<int64_t> kernel(weight.begin() + 2, weight.end());
    auto options =
        nn::ConvOptions<D>(weight[1] * p.groups, weight[0], torch::ExpandingArray<D>(kernel))
            .stride(p.stride)
            .padding(torch::ExpandingArray<D>(p.padding))
            .dilation(p.dilation)
            .groups(p.groups);
    return module(Module(options.bias(has("bias"))));
  }

  template <typename Module>
  Run batch_norm(const BatchNorm& p) {
    auto options = nn::BatchNormOptions(step_->shape[0]).eps(p.eps).momentum(p.momentum);
    return module(Module(options.affine(has("weight"))));
  }

  /// A module of torch, which gets the step's tensors.
  template <typename Module>
  Run module(Module made) {
    std::map<std::string, at::Tensor> own;
    for (const auto& each : made->named_parameters()) own[each.key()] = each.value();
    for (const auto& each : made->named_buffers()) own[each.key()] = each.value();
    for (const Operand& operand : step_->operands) {
      at::Tensor& given = to_.tensors_[operand.place];
      const at::Tensor of_module = own.at(operand.role);
      of_module.set_data(given);
      of_module.set_requires_grad(given.requires_grad());
      given = of_module;
      is_there_[operand.place] = true;
    }
    put(made.ptr());
    return [made](at::TensorList inputs) mutable { return made->forward(inputs[0]); };
  }

  /// The plain operation, on tensors that a module of its own holds.
  Run plain(const Primitive& primitive) {
    detail::Operands operands;
    const auto holder = std::make_shared<Tensors>(name_of(primitive));
    for (const Operand& operand : step_->operands) {
      const at::Tensor& own = to_.tensors_[operand.place];
      operands[operand.role] = own;
      if (is_there_[operand.place]) continue;
      is_there_[operand.place] = true;
      if (operand.is_buffer) {
        holder->register_buffer(operand.role, own);
      } else {
        holder->register_parameter(operand.role, own, own.requires_grad());
      }
    }
    if (!holder->parameters().empty()) put(holder);
    return [primitive, operands](at::TensorList inputs) {
      return detail::evaluate(primitive, inputs.vec(), operands);
    };
  }

  void put(const std::shared_ptr<nn::Module>& module) {
    std::string name = step_->block;
    if (steps_of_block_.at(step_->block) > 1) name += "." + step_->part;
    std::replace(name.begin(), name.end(), '.', '_');
    TORCH_CHECK_VALUE(!to_.named_children().contains(name), "nsn::extract: two modules would be ",
                      "named '", name, "', one of them made of block '", step_->block,
                      "'. Rename the block.");
    to_.register_module(name, module);
  }

  [[noreturn]] void refuse(const std::string& why) const {
    TORCH_CHECK_VALUE(false, "nsn::extract: block '", step_->block, "'", why);
  }

  ExtractedImpl& to_;
  std::map<std::string, size_t> steps_of_block_;
  const Step* step_ = nullptr;
  /// For each tensor whether a module has it already.
  std::vector<bool> is_there_;
};

ExtractedImpl::ExtractedImpl(Program program, std::vector<at::Tensor> tensors)
    : nn::Module("nsn::Extracted"), program_(std::move(program)), tensors_(std::move(tensors)) {
  const KeepsGenerator keeps_generator;
  const at::NoGradGuard no_grad;
  Writer writer(*this);
  for (const Step& step : program_.steps()) steps_.push_back(writer.write(step));
}

at::Tensor ExtractedImpl::forward(const at::Tensor& x) {
  std::vector<at::Tensor> values{x};
  for (const size_t i : c10::irange(steps_.size())) {
    std::vector<at::Tensor> inputs;
    for (const size_t value : program_.steps()[i].inputs) inputs.push_back(values[value]);
    values.push_back(steps_[i](inputs));
  }
  return values[program_.output()];
}

std::shared_ptr<torch::nn::Module> ExtractedImpl::clone(
    const std::optional<torch::Device>& device) const {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> tensors;
  for (const at::Tensor& each : tensors_) {
    at::Tensor copy = each.detach().clone();
    if (device) copy = copy.to(*device);
    tensors.push_back(copy.set_requires_grad(each.requires_grad()));
  }
  auto result = std::make_shared<ExtractedImpl>(program_, std::move(tensors));
  result->train(is_training());
  return result;
}

Extracted extract(const Network& net, const std::string& subnetwork) {
  const ParameterTable table = net->parameter_table();
  table.places_of({subnetwork});
  const Program shared = lower(net->description(), subnetwork);
  // The same with a tensor of its own for each part of a tensor that is read.
  Program program(shared.input(), shared.dtype());
  std::vector<at::Tensor> tensors;
  std::map<std::string, size_t> places;
  for (Step step : shared.steps()) {
    for (Operand& operand : step.operands) {
      const std::string part = std::to_string(operand.place) + to_string(operand.slice);
      const auto [found, is_new] = places.emplace(part, tensors.size());
      if (is_new) {
        const at::Tensor& from = table[operand.place];
        tensors.push_back(
            extract_tensor(from, operand.slice).set_requires_grad(from.requires_grad()));
      }
      operand.place = found->second;
      operand.slice = whole(kept_shape(operand.slice));
    }
    program.add(std::move(step));
  }
  program.returns(shared.output());
  Extracted result(std::move(program), std::move(tensors));
  result->train(net->is_training());
  return result;
}

}  // namespace nsn
