#pragma once

#include <torch/arg.h>
#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nsn/blocks/block.h>

namespace nsn {

/// Options for `Wrapped`.
///
///     WrappedOptions("Mixer", torch::nn::Linear(8, 8)).row_independent(true)
struct NSN_API WrappedOptions {
  /// Any module that can be cloned and has at::Tensor forward(at::Tensor); `type` stands for it in
  /// JSON.
  template <typename Holder>
  WrappedOptions(std::string type, const Holder& module)
      : type_(std::move(type)),
        module_(module.ptr()),
        call_([](torch::nn::Module& called, const at::Tensor& x) {
          return static_cast<typename Holder::ContainedType&>(called).forward(x);
        }) {}

  /// What its factory makes it from again, a JSON object. Default: {}.
  TORCH_ARG(std::string, options_json) = "{}";

  /// Whether each sample's output depends on that sample alone, so that lanes may be stacked into
  /// one call. Not so for batch norm, nor where the batch is not the first dimension. Default:
  /// false.
  TORCH_ARG(bool, row_independent) = false;

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)

 private:
  friend class Wrapped;
  std::string type_;
  std::shared_ptr<torch::nn::Module> module_;
  std::function<at::Tensor(torch::nn::Module&, const at::Tensor&)> call_;
};

/// A torch::nn module as a block: x (B, *) to the module's y (B, *), once a lane. The network takes
/// the module in, with its parameters and buffers under the block's name.
///
/// Rules that are linear are obeyed although the module's weights cannot be split: a lane's
/// gradient is scaled by its coefficient c behind the module and by 1 / c before it, so that the
/// parameters get c times the gradient and the input gets it unscaled; a lane whose c is 0 runs
/// through a clone whose parameters take no part. Other rules are refused when the network is
/// built. The module must not clip or otherwise bend gradients, nor work in place on its input
/// (this is noticed). Views evaluate a clone on the network's storages of the moment they are made.
class NSN_API Wrapped final : public Block {
 public:
  /// Throws c10::ValueError where there is no module, and c10::Error where it cannot be cloned.
  explicit Wrapped(WrappedOptions options);

  std::string type() const override { return options_.type_; }
  std::string options_json() const override { return options_.options_json(); }
  std::vector<ParameterSpec> parameters() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  Lanes joint(Lanes inputs, const BlockPass& pass) const override;
  void check_rule(const merge::Rule& rule) const override;
  std::shared_ptr<torch::nn::Module> module() const override { return options_.module_; }
  BlockPtr evaluator() const override;
  BlockPtr copy() const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  at::Tensor call(torch::nn::Module& module, const at::Tensor& x) const;

  WrappedOptions options_;
};

}  // namespace nsn
