#include "nsn/network.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <numeric>
#include <ostream>
#include <sstream>
#include <utility>

namespace nsn {

namespace {

/// A block's parameters under the block's name.
class BlockParameters : public torch::nn::Module {
 public:
  BlockParameters(const Description::NamedBlock& block, at::TensorList parameters)
      : block_(block.block) {
    for (const size_t i : c10::irange(parameters.size())) {
      register_parameter(block.parameters[i].name, parameters[i]);
    }
  }

  void pretty_print(std::ostream& stream) const override {
    stream << block_->type() << '(';
    block_->pretty_print(stream);
    stream << ')';
  }

 private:
  BlockPtr block_;
};

}  // namespace

NetworkImpl::NetworkImpl(Description description)
    : NetworkImpl(description, Core(description).initial_parameters()) {}

NetworkImpl::NetworkImpl(Description description, std::vector<at::Tensor> parameters)
    : torch::nn::Module("nsn::Network"),
      core_(std::make_shared<const Core>(std::move(description))) {
  TORCH_CHECK_VALUE(parameters.size() == this->description().parameter_tensors(),
                    "nsn::Network: expected ", this->description().parameter_tensors(),
                    " parameters, but got ", parameters.size(), ".");
  const at::TensorList all(parameters);
  for (const auto& block : this->description().blocks()) {
    register_module(block.name,
                    std::make_shared<BlockParameters>(
                        block, all.slice(block.first_parameter, block.parameters.size())));
  }
}

std::vector<at::Tensor> NetworkImpl::parameter_table() const {
  return parameters();  // registered in the order of the names
}

Outputs NetworkImpl::run(const at::Tensor& x, const std::vector<size_t>& subnetworks) {
  const auto outputs = core_->joint(parameter_table(), x, subnetworks, is_training());
  Outputs result("sub-network");
  for (const size_t i : c10::irange(subnetworks.size())) {
    result.insert(description().subnetworks()[subnetworks[i]].name, outputs[i]);
  }
  return result;
}

Outputs NetworkImpl::joint(const at::Tensor& x) {
  std::vector<size_t> all(description().subnetworks().size());
  std::iota(all.begin(), all.end(), size_t{0});
  return run(x, all);
}

Outputs NetworkImpl::joint(const at::Tensor& x, const std::vector<std::string>& names) {
  std::vector<size_t> places;
  for (const std::string& name : names) places.push_back(description().index_of(name));
  return run(x, places);
}

at::Tensor NetworkImpl::forward(const at::Tensor& x, const std::string& name) {
  return run(x, {description().index_of(name)})[0].value();
}

View NetworkImpl::view(const std::string& name) const {
  View::Current current;
  // A network on the stack has nobody who could tell when it is gone.
  const auto self =
      std::weak_ptr<const torch::nn::Module>(const_cast<NetworkImpl*>(this)->weak_from_this());
  if (!self.expired()) {
    current = [self] {
      const auto network = self.lock();
      return network ? network->parameters() : std::vector<at::Tensor>();
    };
  }
  return View(core_, name, parameter_table(), std::move(current));
}

std::shared_ptr<torch::nn::Module> NetworkImpl::clone(
    const std::optional<torch::Device>& device) const {
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> copies;
  const auto own = parameter_table();
  for (const at::Tensor& parameter : own) {
    copies.push_back(device ? parameter.detach().to(*device, /*non_blocking=*/false, /*copy=*/true)
                            : parameter.detach().clone());
  }
  auto copy = std::make_shared<NetworkImpl>(description(), std::move(copies));
  const auto cloned = copy->parameters();
  for (const size_t i : c10::irange(own.size())) {
    cloned[i].set_requires_grad(own[i].requires_grad());
    if (own[i].grad().defined()) cloned[i].mutable_grad() = own[i].grad().clone();
  }
  copy->train(is_training());
  return copy;
}

void NetworkImpl::pretty_print(std::ostream& stream) const {
  stream << "nsn::Network(input=" << to_string(description().input())
         << ", merge=" << description().merge().name() << ')';
}

}  // namespace nsn
