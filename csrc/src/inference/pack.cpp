#include "nsn/inference/pack.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <iomanip>
#include <mutex>
#include <numeric>
#include <optional>
#include <ostream>
#include <sstream>
#include <utility>

#include "inference/packed_program.h"
#include "inference/packed_tensors.h"
#include "network/parameters.h"
#include "nsn/description/lower.h"
#include "nsn/network/network.h"
#include "operations/autocast.h"
#include "operations/plain.h"

namespace nsn {

namespace {

/// A number that tells contents, shape and dtype of a tensor from others'. Version counters would
/// be cheaper, but not all that writes counts there: `torch.optim` with `fused=True` does not.
uint64_t fingerprint(const at::Tensor& tensor) {
  constexpr uint64_t kPrime = 0x9E3779B97F4A7C15U;
  constexpr size_t kSums = 8;  // independent ones, since each waits for the multiplication before
  const at::Tensor bytes = tensor.detach().cpu().contiguous();
  const auto* from = static_cast<const char*>(bytes.const_data_ptr());
  std::array<uint64_t, kSums> sums{};
  const auto add = [](uint64_t& sum, uint64_t word) { sum = (sum ^ word) * kPrime + (sum >> 29); };
  size_t left = bytes.nbytes();
  std::array<uint64_t, kSums> words{};
  while (left > 0) {
    const size_t count = std::min(left, sizeof words);
    if (count < sizeof words) words.fill(0);
    std::memcpy(words.data(), from, count);
    for (size_t i = 0; i < kSums; ++i) add(sums[i], words[i]);
    from += count;
    left -= count;
  }
  uint64_t result = static_cast<uint64_t>(tensor.scalar_type());
  for (const int64_t extent : tensor.sizes()) add(result, static_cast<uint64_t>(extent));
  for (const uint64_t sum : sums) add(result, sum);
  return result;
}

/// A name and the dtype of a parameter, as the first of its dtype.
using NamedDtype = std::pair<std::string, at::ScalarType>;

/// What one packing left; constant.
struct Snapshot {
  std::shared_ptr<const Core> core;
  detail::PackedTensors tensors;
  /// By the sub-network's place; none for those that are not in the pack.
  std::vector<std::optional<detail::PackedProgram>> programs;
  /// Of the tensors that its sub-networks read, by place.
  std::vector<std::pair<size_t, uint64_t>> fingerprints;
  /// The floating dtypes that its parameters have.
  std::vector<NamedDtype> dtypes;
};

}  // namespace

struct Pack::State {
  std::shared_ptr<const Core> core;  // the network's
  std::vector<size_t> subnetworks;
  View::Current current;
  mutable std::mutex mutex;  // over `snapshot`, the pointer
  std::shared_ptr<const Snapshot> snapshot;

  std::shared_ptr<const Snapshot> now() const {
    const std::lock_guard<std::mutex> lock(mutex);
    return snapshot;
  }

  void pack(at::TensorList parameters) {
    const at::NoGradGuard no_grad;
    const detail::WithoutAutocast guard(at::kCPU);
    auto made = std::make_shared<Snapshot>();
    made->core = core;
    const Description& description = core->description();
    const auto& blocks = description.blocks();
    const bool has_modules = std::any_of(blocks.begin(), blocks.end(), [](const auto& block) {
      return block.block->module() != nullptr;
    });
    if (has_modules) {
      made->core = std::make_shared<const Core>(description.with_blocks([](const Block& block) {
        const BlockPtr copy = block.copy();
        return copy ? copy->evaluator() : nullptr;
      }));
    }
    std::vector<at::Tensor> table(parameters.size());
    for (const size_t s : subnetworks) {
      for (const auto& places : description.subnetworks()[s].places) {
        for (const ParameterPlace& at : places) {
          detail::check_plain(parameters[at.place], description.parameters()[at.place].name,
                              "Pack");
          table[at.place] = parameters[at.place].detach();
          if (!at.is_private || !description.parameters()[at.place].counts_batches) continue;
          for (const size_t other : description.siblings_of(at.place)) {
            table[other] = parameters[other].detach();
          }
        }
      }
    }
    made->core->check_statistics(table, subnetworks);
    std::vector<Program> programs;  // which stay until the tensors are filled
    programs.reserve(subnetworks.size());
    made->programs.resize(description.subnetworks().size());
    for (const size_t s : subnetworks) {
      const std::string& name = description.subnetworks()[s].name;
      programs.push_back(lower(made->core->description(), name));
      made->programs[s].emplace(programs.back(), name, s, made->tensors);
    }
    made->tensors.fill(table);
    for (const size_t i : c10::irange(table.size())) {
      if (!table[i].defined()) continue;
      made->fingerprints.emplace_back(i, fingerprint(table[i]));
      const auto& parameter = description.parameters()[i];
      const auto dtype = table[i].scalar_type();
      const bool known = std::any_of(made->dtypes.begin(), made->dtypes.end(),
                                     [&](const NamedDtype& each) { return each.second == dtype; });
      if (!parameter.is_buffer && !known) made->dtypes.emplace_back(parameter.name, dtype);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    snapshot = std::move(made);
  }

  bool stale(at::TensorList parameters) const {
    const auto own = now();
    return std::any_of(own->fingerprints.begin(), own->fingerprints.end(), [&](const auto& each) {
      const at::Tensor& tensor = parameters[each.first];
      if (!tensor.defined()) return true;
      detail::check_plain(tensor, own->core->description().parameters()[each.first].name, "Pack");
      return fingerprint(tensor) != each.second;
    });
  }

  bool stale() const {
    if (!current) return false;
    const auto parameters = current();
    return !parameters.empty() && stale(parameters);
  }
};

namespace {

/// The core of a network that has these sub-networks' parameters.
const std::shared_ptr<const Core>& core_with(const Network& net,
                                             const std::vector<std::string>& subnetworks) {
  std::vector<size_t> places;
  for (const std::string& name : subnetworks) places.push_back(net->description().index_of(name));
  if (places.empty()) {
    net->check_loaded();
  } else {
    net->check_loaded(places);
  }
  return net->shared_core();
}

}  // namespace

Pack::Pack(const Network& net, const std::vector<std::string>& subnetworks)
    : Pack(core_with(net, subnetworks), net->parameter_table(), subnetworks, net->current()) {}

Pack::Pack(std::shared_ptr<const Core> core, at::TensorList parameters,
           const std::vector<std::string>& subnetworks, View::Current current)
    : state_(std::make_shared<State>()) {
  const Description& description = core->description();
  for (const std::string& name : subnetworks) {
    state_->subnetworks.push_back(description.index_of(name));
  }
  if (subnetworks.empty()) {
    state_->subnetworks.resize(description.subnetworks().size());
    std::iota(state_->subnetworks.begin(), state_->subnetworks.end(), size_t{0});
  }
  state_->core = std::move(core);
  state_->current = std::move(current);
  state_->pack(parameters);
}

PackedView Pack::view(const std::string& subnetwork) const {
  const Description& description = state_->core->description();
  const size_t place = description.index_of(subnetwork);
  std::string names;
  for (const size_t s : state_->subnetworks) {
    if (s == place) return PackedView(state_, place);
    names += (names.empty() ? "'" : ", '") + description.subnetworks()[s].name + "'";
  }
  TORCH_CHECK_VALUE(false, "nsn::Pack: sub-network '", subnetwork,
                    "' is not in this pack, which has ", names, ". Name it when packing.");
}

bool Pack::stale() const { return state_->stale(); }
bool Pack::stale(at::TensorList current) const { return state_->stale(current); }

void Pack::refresh() {
  const auto parameters = state_->current ? state_->current() : std::vector<at::Tensor>();
  TORCH_CHECK_VALUE(!parameters.empty(),
                    "nsn::Pack: the network that this pack was made of is gone, so there is "
                    "nothing to pack anew. Keep the network, or use the pack as it is.");
  state_->pack(parameters);
}

void Pack::refresh(at::TensorList parameters) { state_->pack(parameters); }

std::vector<Pack::Entry> Pack::entries() const {
  const auto snapshot = state_->now();
  return snapshot->tensors.entries(snapshot->core->description());
}

int64_t Pack::bytes() const {
  int64_t sum = 0;
  for (const Entry& entry : entries()) sum += entry.bytes;
  return sum;
}

PackedView::PackedView(std::shared_ptr<const Pack::State> state, size_t subnetwork)
    : state_(std::move(state)), subnetwork_(subnetwork) {}

at::Tensor PackedView::operator()(const at::Tensor& x) const {
  const at::NoGradGuard no_grad;
  const detail::WithoutAutocast guard(at::kCPU);
  const auto snapshot = state_->now();
  snapshot->core->check_input(x);
  for (const auto& [parameter, dtype] : snapshot->dtypes) {
    detail::check_dtype(x, parameter, dtype);
  }
  return (*snapshot->programs[subnetwork_])(x);
}

const std::string& PackedView::name() const {
  return state_->core->description().subnetworks()[subnetwork_].name;
}

bool PackedView::stale() const { return state_->stale(); }

std::ostream& operator<<(std::ostream& stream, const std::vector<Pack::Entry>& entries) {
  size_t width = 9;
  for (const Pack::Entry& entry : entries) width = std::max(width, entry.parameter.size());
  const auto row = [&](const std::string& parameter, const std::string& shape,
                       const std::string& form, const std::string& bytes,
                       const std::string& users) {
    stream << std::left << std::setw(static_cast<int>(width) + 2) << parameter << std::setw(20)
           << shape << std::setw(13) << form << std::right << std::setw(12) << bytes << "  "
           << users << '\n';
  };
  row("parameter", "slice", "form", "bytes", "sub-networks");
  int64_t sum = 0;
  for (const Pack::Entry& entry : entries) {
    std::string users;
    for (const std::string& name : entry.subnetworks) users += (users.empty() ? "" : ", ") + name;
    row(entry.parameter, to_string(entry.shape), entry.form, std::to_string(entry.bytes), users);
    sum += entry.bytes;
  }
  row("all", "", "", std::to_string(sum), "");
  return stream;
}

}  // namespace nsn
