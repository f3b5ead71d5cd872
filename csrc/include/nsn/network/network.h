#pragma once

#include <torch/nn/module.h>
#include <torch/nn/modules/common.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nsn/description/description.h>
#include <nsn/network/core.h>
#include <nsn/network/outputs.h>
#include <nsn/network/parameter_table.h>
#include <nsn/network/view.h>

namespace nsn {

/// A network together with the sub-networks that live inside it. Owns each parameter once, as
/// `<block>.<parameter>`; a torch::nn::Module as any other to optimizers, torch::save and to().
///
///     nsn::Network net(nsn::NetworkOptions()
///         .input({784})
///         .block("hidden", nsn::DenseOptions(784, 784).activation(torch::kReLU))
///         .block("output", nsn::DenseOptions(784, 10))
///         .subnetwork("small", {{"output"}})
///         .merge(nsn::merge::mean()));
///     auto outputs = net->joint(images);             // base and small, one pass
///     nsn::joint_loss(outputs, labels).backward();   // merged gradients
class NSN_API NetworkImpl : public torch::nn::Module {
 public:
  /// New parameters, drawn from torch's default generator.
  explicit NetworkImpl(Description description);
  explicit NetworkImpl(const NetworkOptions& options) : NetworkImpl(Description(options)) {}

  /// With the given parameters (as ParameterTable takes them, all there), which become the
  /// network's own.
  NetworkImpl(Description description, std::vector<at::Tensor> parameters, LoadReport report = {});

  const Description& description() const noexcept { return table_.description(); }

  /// One forward of all listed sub-networks over one batch x: (B, *input). In training mode each
  /// applies its dropout; backward merges the sub-networks' gradients by the description's rules. A
  /// parameter that no sub-network of the pass uses gets no gradient.
  Outputs joint(const at::Tensor& x);

  /// The same for some sub-networks.
  Outputs joint(const at::Tensor& x, const std::vector<std::string>& names);

  /// One sub-network's output; base's where no name is given.
  at::Tensor forward(const at::Tensor& x, const std::string& name = "base");

  /// A handle for inference on the storages that the network has now. The fastest inference is a
  /// Pack's (nsn/inference/pack.h).
  View view(const std::string& name) const;

  /// The sub-networks whose parameters are there, in order: all, unless the network was loaded in
  /// part (nsn::load_only). The others can be neither run, nor viewed, nor saved.
  std::vector<std::string> loaded() const { return table_.loaded(); }

  /// Throws c10::ValueError where a block was put into another mode than the network's, which
  /// would be ignored.
  void check_modes() const;

  /// What came of its file; `nsn::load_rest`, which reads more of it, sets it anew.
  const LoadReport& load_report() const noexcept { return table_.report(); }
  void set_load_report(LoadReport report);

  /// What the network computes, apart from its parameters.
  const Core& core() const noexcept { return table_.core(); }

  /// Its parameters and buffers: the tensors of this moment, and where it is not on the stack those
  /// of later ones too.
  ParameterTable parameter_table() const;

  /// A network with its own copy of the parameters, frozen where these are; no random number is
  /// drawn. Of a network loaded in part, the copy takes all its memory, and lacks the same.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

  /// As elsewhere; the description then has the parameters' dtype, and a reference to the one
  /// before is no longer valid.
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Dtype dtype, bool non_blocking = false) override;
  using torch::nn::Module::to;

  /// As elsewhere (torch::save). A network that was loaded in part is refused; one that all is
  /// loaded into (torch::load) is whole.
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;

  void pretty_print(std::ostream& stream) const override;

 protected:
  // What torch::nn::Sequential calls `forward` with where it gives x alone.
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(std::string("base"))})

 private:
  /// What an outer module's clone() calls: takes over the other's values.
  void clone_(torch::nn::Module& other, const std::optional<torch::Device>& device) override;

  Outputs run(const at::Tensor& x, const std::vector<std::string>& names);
  void describe_dtype();

  /// The modules of blocks that compute something else in training, by the blocks' names.
  std::vector<std::pair<std::string, std::shared_ptr<torch::nn::Module>>> with_modes_;
  /// Handles on what is registered: moving the network changes what they hold.
  ParameterTable table_;
};

/// Holds a NetworkImpl by reference, as torch's modules do.
TORCH_MODULE(Network);

}  // namespace nsn
