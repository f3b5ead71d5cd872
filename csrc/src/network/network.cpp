#include "nsn/network/network.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <ostream>
#include <sstream>
#include <utility>

#include "blocks/modules.h"

namespace nsn {

namespace {

/// The parameters of a block, or of a part of one, under their names.
class BlockParameters : public torch::nn::Module {
 public:
  explicit BlockParameters(BlockPtr block = nullptr) : block_(std::move(block)) {}

  /// Takes a tensor in under a name with points: one module for each part but the last.
  void add(const std::string& name, const at::Tensor& tensor, bool is_buffer) {
    const size_t point = name.find('.');
    if (point != std::string::npos) {
      const std::string first = name.substr(0, point);
      std::shared_ptr<BlockParameters> part;
      for (const auto& child : named_children()) {
        if (child.key() == first) part = std::dynamic_pointer_cast<BlockParameters>(child.value());
      }
      if (!part) part = register_module(first, std::make_shared<BlockParameters>());
      part->add(name.substr(point + 1), tensor, is_buffer);
    } else if (is_buffer) {
      register_buffer(name, tensor);
    } else {
      register_parameter(name, tensor);
    }
  }

  // Counters stay what they are, as with Python's Module.to(): torch's own casts all buffers.
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking) override {
    const auto counters = integral_buffers();
    Module::to(device, dtype, non_blocking);
    restore(counters);
  }
  void to(torch::Dtype dtype, bool non_blocking) override {
    const auto counters = integral_buffers();
    Module::to(dtype, non_blocking);
    restore(counters);
  }
  using Module::to;

  void pretty_print(std::ostream& stream) const override {
    if (!block_) {
      stream << "parameters";
      return;
    }
    stream << block_->type() << '(';
    block_->pretty_print(stream);
    stream << ')';
  }

 private:
  std::vector<std::pair<std::string, at::Tensor>> integral_buffers() const {
    std::vector<std::pair<std::string, at::Tensor>> result;
    for (const auto& buffer : named_buffers(/*recurse=*/false)) {
      if (at::isFloatingType(buffer.value().scalar_type())) continue;
      result.emplace_back(buffer.key(), buffer.value().detach());
    }
    return result;
  }
  void restore(const std::vector<std::pair<std::string, at::Tensor>>& buffers) {
    auto own = named_buffers(/*recurse=*/false);
    for (const auto& [name, value] : buffers) {
      own[name].set_data(value.to(own[name].device()));
    }
  }

  BlockPtr block_;
};

/// The values in memory of their own, on `device` where one is given.
at::Tensor copy_of(const at::Tensor& tensor, const std::optional<torch::Device>& device) {
  return device ? tensor.detach().to(*device, /*non_blocking=*/false, /*copy=*/true)
                : tensor.detach().clone();
}

/// Whether it is trained, and its gradient.
void copy_autograd(const at::Tensor& from, const at::Tensor& to,
                   const std::optional<torch::Device>& device) {
  if (!at::isFloatingType(to.scalar_type())) return;
  to.set_requires_grad(from.requires_grad());
  if (!from.grad().defined()) return;
  to.mutable_grad() = copy_of(from.grad(), device);
}

/// Each module's own mode.
void copy_modes(const torch::nn::Module& from, torch::nn::Module& to) {
  to.train(from.is_training());
  const auto theirs = from.named_children();
  for (const auto& child : to.named_children()) {
    if (const auto* other = theirs.find(child.key())) copy_modes(**other, *child.value());
  }
}

/// The tensors under which the modules of wrapped blocks know the given values.
std::vector<at::Tensor> taken_in(const Description& description, std::vector<at::Tensor> tensors) {
  const auto& expected = description.parameters();
  for (const size_t b : c10::irange(description.blocks().size())) {
    const auto module = description.blocks()[b].block->module();
    if (!module) continue;
    const auto own = detail::tensors_of(*module);
    for (const size_t p : c10::irange(expected.size())) {
      if (expected[p].block != b) continue;
      const at::Tensor& tensor = own[expected[p].spec];
      if (!tensor.is_same(tensors[p])) tensor.set_data(tensors[p].detach());
      tensors[p] = tensor;
    }
  }
  return tensors;
}

}  // namespace

NetworkImpl::NetworkImpl(Description description)
    : NetworkImpl(description, Core(description).initial_parameters()) {}

NetworkImpl::NetworkImpl(Description description, std::vector<at::Tensor> parameters,
                         LoadReport report)
    : torch::nn::Module("nsn::Network"),
      table_(std::make_shared<const Core>(std::move(description)), std::move(parameters),
             std::move(report)) {
  table_.check_whole();
  table_ = table_.at_moment(taken_in(this->description(), table_.tensors()));
  const auto& expected = this->description().parameters();
  for (const size_t b : c10::irange(this->description().blocks().size())) {
    const auto& block = this->description().blocks()[b];
    if (const auto module = block.block->module()) {
      register_module(block.name, module);
      continue;
    }
    const auto part = register_module(block.name, std::make_shared<BlockParameters>(block.block));
    for (const size_t p : c10::irange(expected.size())) {
      if (expected[p].block != b) continue;
      part->add(expected[p].name.substr(block.name.size() + 1), table_[p], expected[p].is_buffer);
    }
  }
  for (const std::string& name : this->description().blocks_with_modes()) {
    with_modes_.emplace_back(name, named_children()[name]);
  }
  describe_dtype();
}

/// Takes the dtype that the floating parameters have, where they have one.
void NetworkImpl::describe_dtype() {
  std::optional<at::ScalarType> dtype;
  for (const at::Tensor& tensor : table_) {
    const at::ScalarType own = tensor.scalar_type();
    if (!at::isFloatingType(own)) continue;
    if (dtype && *dtype != own) return;
    dtype = own;
  }
  if (!dtype || *dtype == description().parameter_dtype()) return;
  table_ = ParameterTable(std::make_shared<const Core>(description().with_dtype(*dtype)),
                          table_.tensors(), table_.report());
}

void NetworkImpl::to(torch::Device device, torch::Dtype dtype, bool non_blocking) {
  Module::to(device, dtype, non_blocking);
  describe_dtype();
}

void NetworkImpl::to(torch::Dtype dtype, bool non_blocking) {
  Module::to(dtype, non_blocking);
  describe_dtype();
}

void NetworkImpl::save(torch::serialize::OutputArchive& archive) const {
  table_.check_loaded();
  Module::save(archive);
}

void NetworkImpl::load(torch::serialize::InputArchive& archive) {
  Module::load(archive);
  set_load_report({{}, load_report().bytes_read});
}

void NetworkImpl::set_load_report(LoadReport report) {
  table_ = ParameterTable(table_.shared_core(), table_.tensors(), std::move(report));
}

void NetworkImpl::check_modes() const {
  for (const auto& [name, module] : with_modes_) {
    const char* mine = is_training() ? "train" : "eval";
    const char* its = is_training() ? "eval" : "train";
    TORCH_CHECK_VALUE(module->is_training() == is_training(), "nsn::Network: block '", name,
                      "' is in ", its, "() mode, but the network in ", mine,
                      "(), and a network runs in one mode. Call net->", mine, "() or net->", its,
                      "(); to keep running statistics while training, describe the batch norm with "
                      "track(false).");
  }
}

Outputs NetworkImpl::run(const at::Tensor& x, const std::vector<std::string>& names) {
  // None are refused by the core, and do not stand for all.
  const auto subnetworks = names.empty() ? std::vector<size_t>() : table_.places_of(names);
  check_modes();
  const auto outputs = core().joint(table_, x, subnetworks, is_training());
  Outputs result("sub-network");
  for (const size_t i : c10::irange(subnetworks.size())) {
    result.insert(description().name(subnetworks[i]), outputs[i]);
  }
  return result;
}

Outputs NetworkImpl::joint(const at::Tensor& x) { return run(x, description().names()); }

Outputs NetworkImpl::joint(const at::Tensor& x, const std::vector<std::string>& names) {
  return run(x, names);
}

at::Tensor NetworkImpl::forward(const at::Tensor& x, const std::string& name) {
  return run(x, {name})[0].value();
}

ParameterTable NetworkImpl::parameter_table() const {
  // A network on the stack has nobody who could tell when it is gone.
  const auto self =
      std::weak_ptr<const torch::nn::Module>(const_cast<NetworkImpl*>(this)->weak_from_this());
  if (self.expired()) return table_;
  const auto current = [self] {
    const auto network = self.lock();
    return network ? static_cast<const NetworkImpl&>(*network).table_.tensors()
                   : std::vector<at::Tensor>();
  };
  return {table_.shared_core(), table_.tensors(), table_.report(), current};
}

View NetworkImpl::view(const std::string& name) const { return View(parameter_table(), name); }

std::shared_ptr<torch::nn::Module> NetworkImpl::clone(
    const std::optional<torch::Device>& device) const {
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> copies;
  for (const at::Tensor& parameter : table_) copies.push_back(copy_of(parameter, device));
  auto copy = std::make_shared<NetworkImpl>(
      description().with_blocks([](const Block& block) { return block.copy(); }), std::move(copies),
      load_report());
  for (const size_t i : c10::irange(table_.size())) {
    copy_autograd(table_[i], copy->table_[i], device);
  }
  copy_modes(*this, *copy);
  return copy;
}

void NetworkImpl::clone_(torch::nn::Module& other, const std::optional<torch::Device>& device) {
  auto* network = other.as<NetworkImpl>();
  if (network != nullptr) {
    const auto dtype = network->description().parameter_dtype();
    table_ = ParameterTable(std::make_shared<const Core>(description().with_dtype(dtype)),
                            table_.tensors(), load_report());
  }
  TORCH_CHECK_VALUE(network != nullptr && network->description() == description(),
                    "nsn::Network: a module that is cloned makes another network in its reset() "
                    "than the one it has. Let reset() make it from the same description.");
  const torch::NoGradGuard no_grad;
  for (const size_t i : c10::irange(table_.size())) {
    const at::Tensor& from = network->table_[i];
    table_[i].set_data(copy_of(from, device));
    copy_autograd(from, table_[i], device);
  }
  set_load_report(network->load_report());
  copy_modes(*network, *this);
}

void NetworkImpl::pretty_print(std::ostream& stream) const {
  stream << "nsn::Network(input=" << to_string(description().input())
         << ", merge=" << description().merge().name() << ')';
}

}  // namespace nsn
