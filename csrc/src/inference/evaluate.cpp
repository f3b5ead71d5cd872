#include "inference/evaluate.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/avg_pool1d.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv_transpose2d.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/group_norm.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/max_pool1d.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/upsample_bilinear2d.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/Exception.h>

#include <optional>
#include <utility>

#include "operations/lanes.h"

namespace nsn::detail {

namespace {

using namespace primitives;  // NOLINT(google-build-using-namespace)

/// The scale and shift of a batch norm, of float64, stacked.
at::Tensor fold_norm(const BatchNorm& norm, const Operands& operands) {
  const auto wide = [&](const char* role) { return operands.at(role).to(at::kDouble); };
  at::Tensor scale = at::rsqrt(wide("running_var") + norm.eps);
  at::Tensor shift = -wide("running_mean") * scale;
  if (operands.count("weight") > 0) {
    scale = scale * wide("weight");
    shift = shift * wide("weight") + wide("bias");
  }
  return at::stack({scale, shift});
}

class Evaluator {
 public:
  Evaluator(std::vector<at::Tensor>& inputs, const Operands& operands)
      : inputs_(inputs), operands_(operands) {}

  at::Tensor operator()(const Product& /*p*/) const {
    return at::linear(x(), tensor("weight"), optional("bias"));
  }
  at::Tensor operator()(const Convolution& p) const {
    const std::vector<int64_t> none(p.stride.size(), 0);
    return at::convolution(x(), tensor("weight"), optional("bias"), p.stride, p.padding, p.dilation,
                           /*transposed=*/false, /*output_padding=*/none, p.groups);
  }
  at::Tensor operator()(const TransposedConvolution& p) const {
    return at::conv_transpose2d(x(), tensor("weight"), optional("bias"), p.stride, p.padding,
                                p.output_padding, /*groups=*/1, p.dilation);
  }
  at::Tensor operator()(const Pad& p) const { return at::constant_pad_nd(x(), {p.before, 0}); }
  at::Tensor operator()(const MaxPool& p) const {
    return p.kernel.size() == 1 ? at::max_pool1d(x(), p.kernel, p.stride, p.padding)
                                : at::max_pool2d(x(), p.kernel, p.stride, p.padding);
  }
  at::Tensor operator()(const AveragePool& p) const {
    return p.kernel.size() == 1 ? at::avg_pool1d(x(), p.kernel, p.stride, p.padding)
                                : at::avg_pool2d(x(), p.kernel, p.stride, p.padding);
  }
  at::Tensor operator()(const GlobalAverage& /*p*/) const { return x().flatten(2).mean(2); }
  at::Tensor operator()(const Upsample& p) const {
    const std::vector<int64_t> size{x().size(2) * p.factor, x().size(3) * p.factor};
    return p.mode == "nearest" ? at::upsample_nearest2d(x(), size)
                               : at::upsample_bilinear2d(x(), size, /*align_corners=*/false);
  }
  at::Tensor operator()(const LayerNorm& p) const {
    return at::layer_norm(x(), {x().size(-1)}, optional("weight"), optional("bias"), p.eps);
  }
  at::Tensor operator()(const RMSNorm& p) const {
    return at::rms_norm(x(), {x().size(-1)}, optional("weight"), p.eps);
  }
  at::Tensor operator()(const GroupNorm& p) const {
    // As in the block's forward: of what lies channels-last torch loses the variance.
    return at::group_norm(x().contiguous(), p.groups, optional("weight"), optional("bias"), p.eps);
  }
  at::Tensor operator()(const BatchNorm& p) const {
    const at::Tensor folded =
        fold_norm(p, operands_).to(operands_.at("running_mean").scalar_type());
    return x() * along(folded.select(0, 0), 1, x()) + along(folded.select(0, 1), 1, x());
  }
  at::Tensor operator()(const ScaleAndShift& p) const {
    at::Tensor y = x();
    if (const auto scale = optional("scale")) y = y * along(*scale, p.dimension, y);
    if (const auto shift = optional("bias")) y = y + along(*shift, p.dimension, y);
    return y;
  }
  at::Tensor operator()(const Activate& p) const {
    const bool in_place =
        std::holds_alternative<torch::enumtype::kReLU>(p.function) && is_spare(inputs_[0]);
    return in_place ? inputs_[0].relu_() : activate(x(), p.function);
  }
  at::Tensor operator()(const Gate& p) const { return activate(x(), p.function, p.dimension); }
  at::Tensor operator()(const Drop& /*p*/) const { return x(); }
  at::Tensor operator()(const Add& /*p*/) const {
    if (inputs_.size() == 1) return x() + tensor("weight");
    return is_spare(inputs_[1]) ? inputs_[1].add_(inputs_[0]) : inputs_[0] + inputs_[1];
  }
  at::Tensor operator()(const Reshape& p) const {
    std::vector<int64_t> shape{x().size(0)};
    shape.insert(shape.end(), p.shape.begin(), p.shape.end());
    return x().reshape(shape);
  }
  at::Tensor operator()(const Embed& /*p*/) const {
    const bool takes = x().scalar_type() == at::kLong || x().scalar_type() == at::kInt;
    return at::embedding(tensor("weight"), takes ? x() : x().to(at::kLong));
  }
  at::Tensor operator()(const Attend& p) const {
    const int64_t head_dim = x().size(2) / (3 * p.heads);
    const auto parts = x().view({x().size(0), x().size(1), 3, p.heads, head_dim}).unbind(2);
    return at::scaled_dot_product_attention(parts[0].transpose(1, 2), parts[1].transpose(1, 2),
                                            parts[2].transpose(1, 2), /*attn_mask=*/{},
                                            /*dropout_p=*/0.0, p.causal)
        .transpose(1, 2)
        .flatten(2);
  }
  at::Tensor operator()(const Call& p) const {
    TORCH_INTERNAL_ASSERT(false, "a block of type ", p.type, " is no plain operation");
  }

 private:
  const at::Tensor& x() const { return inputs_[0]; }
  const at::Tensor& tensor(const char* role) const { return operands_.at(role); }
  std::optional<at::Tensor> optional(const char* role) const {
    const auto found = operands_.find(role);
    return found == operands_.end() ? std::nullopt : std::optional<at::Tensor>(found->second);
  }

  std::vector<at::Tensor>& inputs_;
  const Operands& operands_;
};

}  // namespace

at::Tensor evaluate(const Primitive& primitive, std::vector<at::Tensor> inputs,
                    const Operands& operands) {
  return std::visit(Evaluator(inputs, operands), primitive);
}

at::Tensor fold(const Step& step, const Operands& operands) {
  const auto* norm = std::get_if<primitives::BatchNorm>(&step.primitive);
  if (norm != nullptr) return fold_norm(*norm, operands);
  const auto find = [&](const char* role) {
    const auto found = operands.find(role);
    return found == operands.end() ? at::Tensor() : found->second.to(at::kDouble);
  };
  const at::Tensor scale = find("scale"), shift = find("bias");
  return at::stack({scale.defined() ? scale : at::ones_like(shift),
                    shift.defined() ? shift : at::zeros_like(scale)});
}

}  // namespace nsn::detail
