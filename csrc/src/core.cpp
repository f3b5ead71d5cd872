#include "nsn/core.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "lanes.h"
#include "mix.h"
#include "nsn/functional.h"
#include "workspace.h"

namespace nsn {

namespace {

constexpr size_t kNone = static_cast<size_t>(-1);

/// Whether nobody else holds the tensor, and it lies alone in its storage. A block may return its
/// input, and then the caller holds the tensor too.
bool owns_storage(const at::Tensor& tensor) {
  return tensor.use_count() == 1 && tensor.storage().nbytes() == tensor.nbytes() &&
         tensor.storage().use_count() == 1;
}

}  // namespace

uint64_t draw_seed() {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

Core::Core(Description description)
    : description_(std::move(description)), workspace_(std::make_shared<detail::Workspace>()) {
  trace_ways();
}

/// Finds for each sub-network and block the first sub-network with the same way so far: the same
/// blocks from the input on, each kept in the same way.
void Core::trace_ways() {
  const auto& subnetworks = description_.subnetworks();
  const size_t count = subnetworks.size();
  passes_.resize(count);
  // A way is told by the way before it, the block, and how the block is kept.
  using Step = std::pair<std::pair<size_t, size_t>, double>;
  std::map<Step, size_t> seen;
  for (const size_t s : c10::irange(count)) {
    const auto& subnetwork = subnetworks[s];
    size_t way = 0;  // the network's input, which all share
    for (const size_t i : c10::irange(subnetwork.blocks.size())) {
      const double dropout = subnetwork.uses[i].dropout.value_or(-1.0);
      const Step step{{way, subnetwork.blocks[i]}, dropout};
      const size_t next = seen.emplace(step, seen.size() + 1).first->second;
      passes_[s].push_back({{subnetwork.name, subnetwork.rank}, subnetwork.uses[i], way, next});
      way = next;
    }
  }
}

std::vector<at::Tensor> Core::initial_parameters() const {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> result;
  for (const auto& block : description_.blocks()) {
    std::vector<at::Tensor> own;
    for (const ParameterSpec& parameter : block.parameters) {
      own.push_back(
          at::empty(parameter.shape, at::TensorOptions().dtype(description_.parameter_dtype())));
    }
    block.block->initialize(own);
    result.insert(result.end(), own.begin(), own.end());
  }
  return result;
}

void Core::check_input(at::TensorList parameters, const at::Tensor& x) const {
  TORCH_CHECK_VALUE(parameters.size() == description_.parameter_tensors(), "nsn::Core: expected ",
                    description_.parameter_tensors(), " parameters, but got ", parameters.size(),
                    ". Give those of Description::parameter_names(), in order.");
  TORCH_CHECK_VALUE(x.defined(), "nsn::Network: the input is an undefined tensor. Pass a batch.");
  const Shape& shape = description_.input();
  const bool fits = x.dim() == static_cast<int64_t>(shape.size()) + 1 &&
                    x.sizes().slice(1) == at::IntArrayRef(shape);
  if (!fits) {
    std::string expected = "(B";
    for (const int64_t extent : shape) expected += ", " + std::to_string(extent);
    TORCH_CHECK_VALUE(false, "nsn::Network: expected input of shape ", expected,
                      "), a batch of samples, but got ", to_string(x.sizes().vec()),
                      ". Reshape the batch, for example with flatten(1); for a single sample use "
                      "unsqueeze(0).");
  }
  TORCH_CHECK_VALUE(at::isFloatingType(x.scalar_type()) == at::isFloatingType(description_.dtype()),
                    "nsn::Network: expected input of dtype ", description_.dtype(), ", but got ",
                    x.scalar_type(), ". Convert the batch with to().");
}

void Core::check_parameters(at::TensorList parameters, size_t place, const at::Tensor& x) const {
  const auto& block = description_.blocks()[place];
  for (const size_t i : c10::irange(block.parameters.size())) {
    const at::Tensor& parameter = parameters[block.first_parameter + i];
    const ParameterSpec& expected = block.parameters[i];
    TORCH_CHECK_VALUE(parameter.defined(), "nsn::Network: parameter '", block.name, ".",
                      expected.name, "' is undefined. Give a tensor of shape ",
                      to_string(expected.shape), ".");
    TORCH_CHECK_VALUE(parameter.sizes() == at::IntArrayRef(expected.shape),
                      "nsn::Network: parameter '", block.name, ".", expected.name,
                      "' must have shape ", to_string(expected.shape), ", but has ",
                      to_string(parameter.sizes().vec()), ". Put a tensor of that shape there.");
    // Autocast brings all floating dtypes to one.
    const auto device = parameter.device().type();
    const bool casts =
        at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device);
    TORCH_CHECK_VALUE(
        casts || !at::isFloatingType(x.scalar_type()) || x.scalar_type() == parameter.scalar_type(),
        "nsn::Network: the input has dtype ", x.scalar_type(), ", but parameter '", block.name, ".",
        expected.name, "' has ", parameter.scalar_type(),
        ". Convert the batch or the network with to().");
  }
}

std::vector<at::Tensor> Core::joint(at::TensorList parameters, const at::Tensor& x,
                                    c10::ArrayRef<size_t> subnetworks, bool training) const {
  check_input(parameters, x);
  const auto& described = description_.subnetworks();
  const size_t lanes = subnetworks.size();
  TORCH_CHECK_VALUE(lanes > 0,
                    "nsn::Network: a joint pass needs at least one sub-network, but got "
                    "none. Name some.");
  for (const size_t lane : c10::irange(lanes)) {
    const size_t subnetwork = subnetworks[lane];
    TORCH_CHECK_VALUE(subnetwork < described.size(), "nsn::Core: there is no sub-network ",
                      subnetwork, "; there are ", described.size(), ".");
    TORCH_CHECK_VALUE(std::find(subnetworks.begin(), subnetworks.begin() + lane, subnetwork) ==
                          subnetworks.begin() + lane,
                      "nsn::Network: sub-network '", described[subnetwork].name,
                      "' is asked for twice in one joint pass. Name it once.");
  }
  const uint64_t seed = training ? draw_seed() : 0;
  functional::Memory memory;
  if (at::GradMode::is_enabled()) {
    workspace_->begin_pass();
    memory.workspace = workspace_;
  }

  std::vector<at::Tensor> activations(lanes, x);
  std::vector<size_t> done(lanes, 0);  // blocks of each lane
  const auto next_place = [&](size_t lane) {
    const auto& own = described[subnetworks[lane]].blocks;
    return done[lane] == own.size() ? kNone : own[done[lane]];
  };
  for (const size_t place : c10::irange(description_.blocks().size())) {
    const auto& block = description_.blocks()[place];
    std::vector<size_t> passing;
    std::vector<at::Tensor> inputs;
    BlockPass pass{{}, block.rule, training, detail::mix(seed, place), memory};
    for (const size_t lane : c10::irange(lanes)) {
      if (next_place(lane) != place) continue;
      passing.push_back(lane);
      inputs.push_back(std::move(activations[lane]));
      pass.lanes.push_back(passes_[subnetworks[lane]][done[lane]++]);
    }
    if (passing.empty()) continue;
    check_parameters(parameters, place, x);

    // Lanes that enter at the block where all these go on: the outputs get room for their input
    // behind them, so that the block finds all that it reads stacked.
    const size_t following = next_place(passing[0]);
    const bool stay_together =
        following != kNone && std::all_of(passing.begin(), passing.end(), [&](size_t lane) {
          return next_place(lane) == following;
        });
    std::vector<size_t> entering;
    for (const size_t lane : c10::irange(lanes)) {
      const bool enters = done[lane] == 0 && next_place(lane) == following;
      if (stay_together && enters && !x.requires_grad()) entering.push_back(lane);
    }
    if (!entering.empty()) pass.memory.room = x.numel();

    auto outputs = block.block->joint(
        inputs, parameters.slice(block.first_parameter, block.parameters.size()), pass);
    for (const size_t i : c10::irange(passing.size())) {
      activations[passing[i]] = std::move(outputs[i]);
    }
    if (entering.empty()) continue;
    const at::Tensor room = detail::Workspace::take_room(activations[passing[0]]);
    if (!room.defined() || room.numel() != x.numel() || room.dtype() != x.dtype()) continue;
    const at::Tensor laid = detail::part(room, 0, x.sizes());
    laid.copy_(x);
    for (const size_t lane : entering) activations[lane] = detail::part(laid, 0, x.sizes());
  }
  // Inside the pass lanes lie together in one buffer; a caller may write into what it gets.
  for (at::Tensor& output : activations) {
    if (!owns_storage(output)) output = output.clone();
  }
  return activations;
}

at::Tensor Core::dropout_mask(uint64_t seed, const std::string& subnetwork,
                              const std::string& block, double probability,
                              at::IntArrayRef shape) const {
  const size_t s = description_.index_of(subnetwork);
  const auto& blocks = description_.subnetworks()[s].blocks;
  for (const size_t i : c10::irange(blocks.size())) {
    if (description_.blocks()[blocks[i]].name == block) {
      const uint64_t key = detail::mix(detail::mix(seed, blocks[i]), passes_[s][i].output_way);
      return functional::dropout_mask(shape, {probability, key});
    }
  }
  TORCH_CHECK_VALUE(false, "nsn::Core: sub-network '", subnetwork, "' keeps no block '", block,
                    "'.");
}

std::vector<double> Core::merge_coefficients(const std::string& subnetwork) const {
  const size_t wanted = description_.index_of(subnetwork);
  std::vector<double> result;
  for (const size_t place : c10::irange(description_.blocks().size())) {
    const auto& block = description_.blocks()[place];
    std::vector<merge::Lane> lanes;
    size_t position = kNone;
    for (const size_t s : c10::irange(description_.subnetworks().size())) {
      const auto& each = description_.subnetworks()[s];
      if (!std::binary_search(each.blocks.begin(), each.blocks.end(), place)) continue;
      if (s == wanted) position = lanes.size();
      lanes.push_back({each.name, each.rank});
    }
    const double coefficient = position == kNone ? 0.0 : block.rule.coefficients(lanes)[position];
    result.insert(result.end(), block.parameters.size(), coefficient);
  }
  return result;
}

}  // namespace nsn
