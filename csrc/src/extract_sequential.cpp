#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/padding.h>
#include <torch/nn/modules/pooling.h>
#include <torch/nn/modules/upsampling.h>

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "nsn/blocks/composite.h"
#include "nsn/blocks/conv.h"
#include "nsn/blocks/dense.h"
#include "nsn/blocks/embedding.h"
#include "nsn/blocks/norm.h"
#include "nsn/blocks/pointwise.h"
#include "nsn/blocks/pool.h"
#include "nsn/extract.h"
#include "nsn/network.h"

namespace nsn {

namespace {

namespace nn = torch::nn;

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

/// Writes a sub-network's blocks down as torch::nn modules, one after the other.
class SequentialWriter {
 public:
  SequentialWriter(const NetworkImpl& net, std::string subnetwork)
      : net_(net), subnetwork_(std::move(subnetwork)) {}

  nn::Sequential write() {
    const KeepsGenerator keeps_generator;
    const at::NoGradGuard no_grad;
    const Description alone = net_.description().alone(subnetwork_);
    for (const ExtractedBlock& block : extract_blocks(net_.description(), subnetwork_)) {
      for (const ExtractedParameter& parameter : block.parameters) {
        const at::Tensor& whole = net_.parameter_table()[parameter.place];
        at::Tensor own = extract_tensor(whole, parameter.slice);
        own.set_requires_grad(whole.requires_grad());
        tensors_[block.name + "." + parameter.name] = std::move(own);
      }
    }
    const auto& base = alone.subnetworks()[0];
    for (const size_t i : c10::irange(alone.blocks().size())) {
      write(alone.blocks()[i].name, alone.blocks()[i].name, *alone.blocks()[i].block, base.fits[i]);
    }
    result_->train(net_.is_training());
    return result_;
  }

 private:
  /// `path` is "stage.conv", the parameters' prefix; `name` is "stage_conv", as modules' names have
  /// no points.
  void write(const std::string& path, const std::string& name, const Block& block, const Fit& fit) {
    if (const auto* sequence = dynamic_cast<const Sequence*>(&block)) {
      for (const size_t i : c10::irange(sequence->inner().size())) {
        const InnerBlock& inner = sequence->inner()[i];
        write(path + "." + inner.name, name + "_" + inner.name, *inner.block, fit.inner[i]);
      }
      return;
    }
    path_ = path;
    name_ = name;
    type_ = block.type();
    rank_ = fit.input.layout.size();
    const bool written =
        write_one_of<Dense, Conv1d, Conv2d, ConvTranspose2d, Embedding, LayerNorm, GroupNorm,
                     BatchNorm, MaxPool1d, MaxPool2d, AvgPool1d, AvgPool2d, GlobalAvgPool, Flatten,
                     Upsample, ActivationBlock, Dropout>(block);
    if (!written) refuse();
  }

  template <typename... Types>
  bool write_one_of(const Block& block) {
    const auto write_if = [&](const auto* own) {
      if (own != nullptr) write(*own);
      return own != nullptr;
    };
    return (write_if(dynamic_cast<const Types*>(&block)) || ...);
  }

  void write(const Dense& block) {
    const DenseOptions& o = block.options();
    const at::Tensor weight = scaled_weight();
    nn::Linear linear(nn::LinearOptions(weight.size(1), weight.size(0)).bias(o.bias()));
    give(linear->weight, weight);
    give(linear->bias, tensor("bias"));
    put(linear);
    follow(o.activation(), o.dropout(), -1);
  }

  template <size_t D>
  void write(const Conv<D>& block) {
    using Module = std::conditional_t<D == 1, nn::Conv1d, nn::Conv2d>;
    const ConvOptions<D>& o = block.options();
    if (o.causal()) {
      const int64_t reach = (*o.dilation())[0] * ((*o.kernel_size())[0] - 1);
      put(nn::ConstantPad1d(nn::ConstantPad1dOptions({reach, 0}, 0.0)), "_padding");
    }
    const at::Tensor weight = scaled_weight();
    Module conv(nn::ConvOptions<D>(o.in_channels(), weight.size(0), o.kernel_size())
                    .stride(o.stride())
                    .padding(o.padding())
                    .dilation(o.dilation())
                    .groups(o.groups())
                    .bias(o.bias()));
    give(conv->weight, weight);
    give(conv->bias, tensor("bias"));
    put(conv);
    follow(o.activation(), o.dropout(), 1);
  }

  void write(const ConvTranspose2d& block) {
    const ConvTranspose2dOptions& o = block.options();
    nn::ConvTranspose2d conv(
        nn::ConvTranspose2dOptions(o.in_channels(), o.out_channels(), o.kernel_size())
            .stride(o.stride())
            .padding(o.padding())
            .output_padding(o.output_padding())
            .dilation(o.dilation())
            .bias(o.bias()));
    give(conv->weight, tensor("weight"));
    give(conv->bias, tensor("bias"));
    put(conv);
    follow(o.activation(), o.dropout(), 1);
  }

  void write(const Embedding& block) {
    const EmbeddingOptions& o = block.options();
    nn::Embedding embedding(nn::EmbeddingOptions(o.num_embeddings(), o.embedding_dim()));
    give(embedding->weight, tensor("weight"));
    put(embedding);
    drop(o.dropout());
  }

  void write(const LayerNorm& block) {
    const LayerNormOptions& o = block.options();
    nn::LayerNorm norm(
        nn::LayerNormOptions({o.features()}).eps(o.eps()).elementwise_affine(o.affine()));
    give(norm->weight, tensor("weight"));
    // torch's has a bias wherever it has a weight.
    give(norm->bias, o.affine() && !o.bias() ? at::zeros_like(norm->weight) : tensor("bias"));
    put(norm);
  }

  void write(const GroupNorm& block) {
    const GroupNormOptions& o = block.options();
    nn::GroupNorm norm(
        nn::GroupNormOptions(o.groups(), o.channels()).eps(o.eps()).affine(o.affine()));
    give(norm->weight, tensor("weight"));
    give(norm->bias, tensor("bias"));
    put(norm);
  }

  void write(const BatchNorm& block) {
    constexpr size_t kMostRank = 4;
    if (rank_ <= 2) {
      write_batch_norm<nn::BatchNorm1d>(block.options());
    } else if (rank_ < kMostRank) {
      write_batch_norm<nn::BatchNorm2d>(block.options());
    } else if (rank_ == kMostRank) {
      write_batch_norm<nn::BatchNorm3d>(block.options());
    } else {
      refuse(" for samples of " + std::to_string(rank_) + " dimensions");
    }
  }

  template <typename Module>
  void write_batch_norm(const BatchNormOptions& o) {
    // Statistics that are not tracked are used all the same: they stay as they are.
    Module norm(nn::BatchNormOptions(o.features())
                    .eps(o.eps())
                    .momentum(o.track() ? o.momentum() : 0.0)
                    .affine(o.affine()));
    give(norm->weight, tensor("weight"));
    give(norm->bias, tensor("bias"));
    give(norm->running_mean, tensor("running_mean"));
    give(norm->running_var, tensor("running_var"));
    give(norm->num_batches_tracked, tensor("num_batches_tracked"));
    put(norm);
  }

  template <PoolKind kind, size_t D>
  void write(const Pool<kind, D>& block) {
    using Max = std::conditional_t<D == 1, nn::MaxPool1d, nn::MaxPool2d>;
    using Average = std::conditional_t<D == 1, nn::AvgPool1d, nn::AvgPool2d>;
    using Module = std::conditional_t<kind == PoolKind::kMax, Max, Average>;
    using Options =
        std::conditional_t<kind == PoolKind::kMax, nn::MaxPoolOptions<D>, nn::AvgPoolOptions<D>>;
    const PoolOptions<kind, D>& o = block.options();
    put(Module(Options(o.kernel_size()).stride(o.stride()).padding(o.padding())));
  }

  void write(const GlobalAvgPool& block) {
    static_cast<void>(block);
    switch (rank_) {
      case 2:
        put(nn::AdaptiveAvgPool1d(1));
        break;
      case 3:
        put(nn::AdaptiveAvgPool2d(1));
        break;
      case 4:
        put(nn::AdaptiveAvgPool3d(1));
        break;
      default:
        refuse(" for samples of " + std::to_string(rank_) + " dimensions");
    }
    put(nn::Flatten(), "_flatten");
  }

  void write(const Flatten& block) {
    static_cast<void>(block);
    put(nn::Flatten());
  }

  void write(const Upsample& block) {
    const auto factor = static_cast<double>(block.options().scale_factor());
    auto o = nn::UpsampleOptions().scale_factor(std::vector<double>{factor, factor});
    if (block.options().mode() == "bilinear") {
      put(nn::Upsample(o.mode(torch::kBilinear).align_corners(false)));
    } else {
      put(nn::Upsample(o.mode(torch::kNearest)));
    }
  }

  void write(const ActivationBlock& block) { activate(block.options().function(), 1, ""); }

  void write(const Dropout& block) { drop(block.options().p(), ""); }

  /// What follows a product.
  void follow(const Activation& activation, double dropout, int64_t dim) {
    activate(activation, dim, "_activation");
    drop(dropout);
  }

  void activate(const Activation& activation, int64_t dim, const std::string& suffix) {
    if (std::holds_alternative<torch::enumtype::kReLU>(activation)) put(nn::ReLU(), suffix);
    if (std::holds_alternative<torch::enumtype::kGELU>(activation)) put(nn::GELU(), suffix);
    if (std::holds_alternative<torch::enumtype::kSiLU>(activation)) put(nn::SiLU(), suffix);
    if (std::holds_alternative<torch::enumtype::kSigmoid>(activation)) put(nn::Sigmoid(), suffix);
    if (std::holds_alternative<torch::enumtype::kTanh>(activation)) put(nn::Tanh(), suffix);
    if (!is_gated(activation)) return;
    if (!std::holds_alternative<enumtype::kGLU>(activation)) {
      refuse(" with the activation '" + to_string(activation) + "'");
    }
    put(nn::GLU(nn::GLUOptions(dim)), suffix);
  }

  void drop(double probability, const std::string& suffix = "_dropout") {
    if (probability > 0.0) put(nn::Dropout(probability), suffix);
  }

  /// scale * (W x) = (scale * W) x
  at::Tensor scaled_weight() const {
    at::Tensor weight = tensor("weight");
    const at::Tensor scale = tensor("scale");
    if (!scale.defined()) return weight;
    Shape rows(static_cast<size_t>(weight.dim()), 1);
    rows[0] = -1;
    return (weight * scale.view(rows))
        .set_requires_grad(weight.requires_grad() || scale.requires_grad());
  }

  /// The sub-network's copy of a parameter of the block at hand; undefined where it has none.
  at::Tensor tensor(const std::string& parameter) const {
    const auto found = tensors_.find(path_ + "." + parameter);
    return found == tensors_.end() ? at::Tensor() : found->second;
  }

  static void give(const at::Tensor& of_module, const at::Tensor& value) {
    if (!value.defined()) return;
    of_module.set_data(value);
    of_module.set_requires_grad(value.requires_grad());
  }

  template <typename Module>
  void put(const Module& module, const std::string& suffix = "") {
    const std::string name = name_ + suffix;
    TORCH_CHECK_VALUE(names_.insert(name).second, "nsn::extract: two modules would be named '",
                      name, "', one of them made of block '", path_, "'. Rename the block.");
    result_->push_back(std::string(name), module);
  }

  [[noreturn]] void refuse(const std::string& how = "") const {
    TORCH_CHECK_VALUE(false, "nsn::extract: block '", path_, "' (", type_, ")", how,
                      " cannot be expressed in torch::nn::Sequential, a row of torch::nn modules "
                      "that read one another. Use net->view(\"",
                      subnetwork_, "\"), or a Network of what nsn::extract_blocks gives.");
  }

  const NetworkImpl& net_;
  std::string subnetwork_;
  nn::Sequential result_;
  std::map<std::string, at::Tensor> tensors_;
  std::set<std::string> names_;
  /// Of the block at hand: its path, the first module's name, and the dimensions of a sample.
  std::string path_, name_, type_;
  size_t rank_ = 0;
};

}  // namespace

torch::nn::Sequential extract(const Network& net, const std::string& subnetwork) {
  net->check_loaded({net->description().index_of(subnetwork)});
  return SequentialWriter(*net, subnetwork).write();
}

}  // namespace nsn
