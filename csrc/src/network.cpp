#include "nsn/network.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <numeric>
#include <ostream>
#include <sstream>
#include <utility>

#include "modules.h"

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
  BlockPtr block_;
};

}  // namespace

NetworkImpl::NetworkImpl(Description description)
    : NetworkImpl(description, Core(description).initial_parameters()) {}

NetworkImpl::NetworkImpl(Description description, std::vector<at::Tensor> parameters,
                         LoadReport report)
    : torch::nn::Module("nsn::Network"),
      core_(std::make_shared<const Core>(std::move(description))),
      table_(std::move(parameters)),
      report_(std::move(report)) {
  const auto& expected = this->description().parameters();
  TORCH_CHECK_VALUE(table_.size() == expected.size(), "nsn::Network: expected ", expected.size(),
                    " parameters, but got ", table_.size(), ".");
  for (const size_t b : c10::irange(this->description().blocks().size())) {
    const auto& block = this->description().blocks()[b];
    if (const auto module = block.block->module()) {
      register_module(block.name, module);
      // The module's own tensors take the given values.
      const auto own = detail::tensors_of(*module);
      for (const size_t p : c10::irange(expected.size())) {
        if (expected[p].block != b) continue;
        const at::Tensor& tensor = own[expected[p].spec];
        if (!tensor.is_same(table_[p])) tensor.set_data(table_[p].detach());
        table_[p] = tensor;
      }
      continue;
    }
    const auto part = register_module(block.name, std::make_shared<BlockParameters>(block.block));
    for (const size_t p : c10::irange(expected.size())) {
      if (expected[p].block != b) continue;
      part->add(expected[p].name.substr(block.name.size() + 1), table_[p], expected[p].is_buffer);
    }
  }
}

std::vector<std::string> NetworkImpl::loaded() const {
  std::vector<std::string> result;
  for (const std::string& name : description().names()) {
    if (report_.missing.count(name) == 0) result.push_back(name);
  }
  return result;
}

void NetworkImpl::check_loaded() const { check_loaded(all_subnetworks()); }

void NetworkImpl::check_loaded(const std::vector<size_t>& subnetworks) const {
  if (report_.missing.empty()) return;
  for (const size_t subnetwork : subnetworks) {
    const std::string& name = description().subnetworks()[subnetwork].name;
    if (report_.missing.count(name) == 0) continue;
    std::string names;
    for (const std::string& each : loaded()) names += (names.empty() ? "'" : ", '") + each + "'";
    TORCH_CHECK_VALUE(false, "nsn::Network: sub-network '", name, "' was not loaded; there are ",
                      names, ". Add it with load_rest(net, path).");
  }
}

std::vector<size_t> NetworkImpl::all_subnetworks() const {
  std::vector<size_t> all(description().subnetworks().size());
  std::iota(all.begin(), all.end(), size_t{0});
  return all;
}

Outputs NetworkImpl::run(const at::Tensor& x, const std::vector<size_t>& subnetworks) {
  check_loaded(subnetworks);
  const auto outputs = core_->joint(table_, x, subnetworks, is_training());
  Outputs result("sub-network");
  for (const size_t i : c10::irange(subnetworks.size())) {
    result.insert(description().subnetworks()[subnetworks[i]].name, outputs[i]);
  }
  return result;
}

Outputs NetworkImpl::joint(const at::Tensor& x) { return run(x, all_subnetworks()); }

Outputs NetworkImpl::joint(const at::Tensor& x, const std::vector<std::string>& names) {
  std::vector<size_t> places;
  for (const std::string& name : names) places.push_back(description().index_of(name));
  return run(x, places);
}

at::Tensor NetworkImpl::forward(const at::Tensor& x, const std::string& name) {
  return run(x, {description().index_of(name)})[0].value();
}

/// What tells views and packs the tensors of later moments.
View::Current NetworkImpl::current() const {
  // A network on the stack has nobody who could tell when it is gone.
  const auto self =
      std::weak_ptr<const torch::nn::Module>(const_cast<NetworkImpl*>(this)->weak_from_this());
  if (self.expired()) return nullptr;
  return [self] {
    const auto network = self.lock();
    return network ? static_cast<const NetworkImpl&>(*network).table_ : std::vector<at::Tensor>();
  };
}

View NetworkImpl::view(const std::string& name) const {
  check_loaded({description().index_of(name)});
  return View(core_, name, table_, current());
}

Pack NetworkImpl::pack(const std::vector<std::string>& subnetworks) const {
  std::vector<size_t> places;
  for (const std::string& name : subnetworks) places.push_back(description().index_of(name));
  check_loaded(places.empty() ? all_subnetworks() : places);
  return Pack(core_, table_, subnetworks, current());
}

std::shared_ptr<torch::nn::Module> NetworkImpl::clone(
    const std::optional<torch::Device>& device) const {
  const torch::NoGradGuard no_grad;
  std::vector<at::Tensor> copies;
  const auto& own = table_;
  for (const at::Tensor& parameter : own) {
    copies.push_back(device ? parameter.detach().to(*device, /*non_blocking=*/false, /*copy=*/true)
                            : parameter.detach().clone());
  }
  auto copy = std::make_shared<NetworkImpl>(
      description().with_blocks([](const Block& block) { return block.copy(); }), std::move(copies),
      report_);
  const auto& cloned = copy->table_;
  for (const size_t i : c10::irange(own.size())) {
    if (description().parameters()[i].is_buffer) continue;
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
