#include "nsn/inference/pack.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <iomanip>
#include <map>
#include <optional>
#include <ostream>
#include <set>
#include <sstream>
#include <utility>

#include "inference/latest.h"
#include "inference/packed_program.h"
#include "inference/packed_tensors.h"
#include "network/input.h"
#include "network/parameters.h"
#include "nsn/description/lower.h"
#include "nsn/network/network.h"
#include "operations/autocast.h"
#include "operations/kernels_for.h"
#include "operations/plain.h"
#include "runtime/model.h"

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

/// What those sub-networks of a file read.
std::vector<Pack::Entry> entries_of(const runtime::File& file,
                                    const std::vector<size_t>& subnetworks) {
  struct Use {
    std::set<size_t> boxes;
    std::vector<std::string> subnetworks;
  };
  std::map<size_t, Use> uses;  // by tensor
  for (const size_t s : subnetworks) {
    const runtime::FileNetwork& network = file.networks[s];
    file.over_boxes(network, [&](size_t tensor, size_t box) {
      Use& use = uses[tensor];
      use.boxes.insert(box);
      const bool is_known = !use.subnetworks.empty() && use.subnetworks.back() == network.name;
      if (!is_known) use.subnetworks.push_back(network.name);
    });
  }
  std::vector<Pack::Entry> result;
  for (const auto& [place, use] : uses) {
    const runtime::FileTensor& tensor = file.tensors[place];
    const auto [is_panels, sizes] = tensor.shape();
    int64_t bytes = 0;
    for (const size_t box : use.boxes) bytes += tensor.boxes[box].bytes;
    result.push_back({"tensor " + std::to_string(place),
                      {sizes.begin(), sizes.end()},
                      !is_panels      ? "copy"
                      : sizes[2] == 1 ? "product"
                                      : "convolution",
                      bytes,
                      use.subnetworks});
  }
  return result;
}

/// Whether there are kernels for all of the tensors that count, and there are such.
bool all_have_kernels(at::TensorList table) {
  bool found = false;
  for (const at::Tensor& tensor : table) {
    if (!tensor.defined() || !tensor.is_floating_point()) continue;
    if (!detail::has_kernels(tensor)) return false;
    found = true;
  }
  return found;
}

}  // namespace

struct Pack::State {
  /// A name and the dtype of a parameter, as the first of its dtype.
  using NamedDtype = std::pair<std::string, at::ScalarType>;

  /// What a sub-network takes.
  struct Input {
    Shape shape;
    at::ScalarType dtype;
  };

  /// What one packing left; constant.
  struct Snapshot {
    /// Of a network; or the file, whose weights the programs read.
    std::shared_ptr<const Core> core;
    std::shared_ptr<const runtime::Model::State> file;
    detail::PackedTensors tensors;
    /// Of each of its sub-networks, in order.
    std::vector<std::unique_ptr<const detail::PackedProgram>> programs;
    std::vector<Input> inputs;
    /// Of the tensors that its sub-networks read, by place.
    std::vector<std::pair<size_t, uint64_t>> fingerprints;
    /// The floating dtypes that its parameters have.
    std::vector<NamedDtype> dtypes;
  };

  /// None of a file.
  std::optional<ParameterTable> network;
  std::vector<size_t> subnetworks;
  std::vector<std::string> names;  // theirs
  detail::Latest<Snapshot> snapshot;

  State(ParameterTable table, std::vector<size_t> places)
      : network(std::move(table)), subnetworks(std::move(places)) {
    for (const size_t s : subnetworks) names.push_back(network->description().name(s));
  }

  explicit State(const std::string& path) {
    auto made = std::make_unique<Snapshot>();
    try {
      made->file = std::make_shared<const runtime::Model::State>(path);
    } catch (const runtime::Error& error) {
      TORCH_CHECK_VALUE(false, error.what());
    }
    for (const size_t i : c10::irange(made->file->file.networks.size())) {
      const auto* ready = made->file->ready(i);
      if (ready == nullptr) continue;
      const auto& own = made->file->subnetworks[i];
      subnetworks.push_back(i);
      names.push_back(own.name);
      made->programs.push_back(
          detail::mapped_program(made->file->file.networks[i].plan, ready->tensors));
      made->inputs.push_back({own.input, own.takes_numbers ? at::kLong : at::kFloat});
    }
    TORCH_CHECK_VALUE(!names.empty(), "nsn::Pack: '", path,
                      "' ends before the weights of each of its sub-networks. Map it when more of "
                      "it is there.");
    snapshot.replace(std::move(made));
  }

  void pack(const ParameterTable& from) {
    const at::NoGradGuard no_grad;
    const detail::WithoutAutocast guard(at::kCPU);
    const Description& description = from.description();
    for (const size_t s : subnetworks) {
      const auto subnetwork = description.subnetwork(s);
      for (const auto& places : subnetwork->places) {
        for (const ParameterPlace& at : places) {
          detail::check_plain(from[at.place], description.parameters()[at.place].name, "Pack");
        }
      }
    }
    auto made = std::make_unique<Snapshot>();
    const ParameterTable table = from.for_inference(subnetworks, /*copies_modules=*/true);
    made->core = table.shared_core();
    made->core->check_statistics(table, subnetworks);
    std::vector<Program> programs;  // which stay until the tensors are filled
    programs.reserve(subnetworks.size());
    const bool has_kernels = all_have_kernels(table);
    for (const size_t s : subnetworks) {
      const std::string name = description.name(s);
      programs.push_back(lower(made->core->description(), name));
      made->programs.push_back(
          detail::pack_program(programs.back(), name, s, has_kernels, made->tensors));
      made->inputs.push_back({description.input(), description.dtype()});
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
    snapshot.replace(std::move(made));
  }

  bool stale(at::TensorList parameters) const {
    const auto own = snapshot.now();
    return std::any_of(own->fingerprints.begin(), own->fingerprints.end(), [&](const auto& each) {
      const at::Tensor& tensor = parameters[each.first];
      if (!tensor.defined()) return true;
      detail::check_plain(tensor, own->core->description().parameters()[each.first].name, "Pack");
      return fingerprint(tensor) != each.second;
    });
  }

  bool stale() const {
    if (!network) return false;
    const auto parameters = network->now();
    return !parameters.empty() && stale(parameters);
  }
};

Pack::Pack(const Network& net, const std::vector<std::string>& subnetworks)
    : Pack(net->parameter_table(), subnetworks) {}

Pack::Pack(const ParameterTable& network, const std::vector<std::string>& subnetworks)
    : state_(std::make_shared<State>(network, network.places_of(subnetworks))) {
  state_->pack(network);
}

Pack::Pack(std::shared_ptr<State> state) : state_(std::move(state)) {}

Pack Pack::map(const std::string& path) { return Pack(std::make_shared<State>(path)); }

PackedView Pack::view(const std::string& subnetwork) const {
  // Which knows those that are not in this pack.
  if (state_->network) state_->network->description().index_of(subnetwork);
  std::string names;
  for (const size_t i : c10::irange(state_->names.size())) {
    if (state_->names[i] == subnetwork) return PackedView(state_, i);
    names += (names.empty() ? "'" : ", '") + state_->names[i] + "'";
  }
  TORCH_CHECK_VALUE(false, "nsn::Pack: sub-network '", subnetwork,
                    "' is not in this pack, which has ", names, ". ",
                    state_->network ? "Name it when packing."
                                    : "Map a file that has it, and all of its weights.");
}

bool Pack::stale() const { return state_->stale(); }
bool Pack::stale(at::TensorList current) const { return state_->stale(current); }

void Pack::refresh() {
  TORCH_CHECK_VALUE(state_->network.has_value(),
                    "nsn::Pack: this pack is mapped from a file, so there is nothing to pack anew. "
                    "Map the file that is to be used in its place.");
  auto parameters = state_->network->now();
  TORCH_CHECK_VALUE(!parameters.empty(),
                    "nsn::Pack: the network that this pack was made of is gone, so there is "
                    "nothing to pack anew. Keep the network, or use the pack as it is.");
  refresh(parameters);
}

void Pack::refresh(at::TensorList parameters) {
  TORCH_CHECK_VALUE(state_->network.has_value(),
                    "nsn::Pack: this pack is mapped from a file, which parameters do not fit. Make "
                    "a pack of the network.");
  state_->pack(state_->network->at_moment(parameters.vec()));
}

std::vector<Pack::Entry> Pack::entries() const {
  const auto snapshot = state_->snapshot.now();
  if (snapshot->file) return entries_of(snapshot->file->file, state_->subnetworks);
  return snapshot->tensors.entries(snapshot->core->description());
}

int64_t Pack::bytes() const {
  int64_t sum = 0;
  for (const Entry& entry : entries()) sum += entry.bytes;
  return sum;
}

PackedView::PackedView(std::shared_ptr<const Pack::State> state, size_t index)
    : state_(std::move(state)), index_(index) {}

namespace {

/// Where the elements of a tensor lie: from the first byte to behind the last.
std::pair<uintptr_t, uintptr_t> span_of(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return {0, 0};
  int64_t least = 0, most = 0;
  for (const int64_t dim : c10::irange(tensor.dim())) {
    const int64_t reach = (tensor.size(dim) - 1) * tensor.stride(dim);
    (reach < 0 ? least : most) += reach;
  }
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const auto bytes = static_cast<int64_t>(tensor.element_size());
  return {begin + static_cast<uintptr_t>(least * bytes),
          begin + static_cast<uintptr_t>((most + 1) * bytes)};
}

/// Whether kernels may write to a tensor from its first element on.
bool has_plain_memory(const at::Tensor& out) {
  const auto wraps = c10::DispatchKeySet(
      {c10::DispatchKey::Python, c10::DispatchKey::FuncTorchBatched,
       c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::Functionalize});
  return out.layout() == at::kStrided && out.has_storage() && out.is_contiguous() &&
         !out._is_zerotensor() && !out.unsafeGetTensorImpl()->key_set().has_any(wraps) &&
         detail::ends_in_storage(out);
}

/// Whether two tensors may have memory in common, which they may have through two storages too.
bool may_overlap(const at::Tensor& x, const at::Tensor& out) {
  // What has no storage is refused behind this.
  if (!x.defined() || !x.has_storage() || x.device() != out.device()) return false;
  // What stands for other tensors may have no address to ask for.
  if (x.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python)) return x.is_alias_of(out);
  const auto [x_begin, x_end] = span_of(x);
  const auto [out_begin, out_end] = span_of(out);
  return x_begin < out_end && out_begin < x_end;
}

}  // namespace

/// Calls `run(program, x)` with an x that has been checked.
template <typename Run>
void PackedView::run(const at::Tensor& x, const Run& run) const {
  const at::NoGradGuard no_grad;
  const detail::WithoutAutocast guard(at::kCPU);
  const auto snapshot = state_->snapshot.now();
  const auto& [shape, input_dtype] = snapshot->inputs[index_];
  detail::check_input(x, shape, input_dtype, "Pack");
  for (const auto& [parameter, dtype] : snapshot->dtypes) {
    detail::check_dtype(x, parameter, dtype);
  }
  // Kernels read memory: a sign that torch has yet to apply would be lost.
  run(*snapshot->programs[index_], x.is_neg() ? x.resolve_neg() : x);
}

at::Tensor PackedView::operator()(const at::Tensor& x) const {
  at::Tensor y;
  run(x, [&](const detail::PackedProgram& program, const at::Tensor& checked) {
    y = program(checked);
  });
  return y;
}

void PackedView::operator()(const at::Tensor& x, const at::Tensor& out) const {
  TORCH_CHECK_VALUE(
      out.defined() && !out.requires_grad() && !out.is_neg() && has_plain_memory(out) &&
          !may_overlap(x, out),
      "nsn::PackedView: `out` must be a dense, contiguous tensor without gradient, whose memory is "
      "its own and none of the input's. Make an empty one of the output's shape.");
  run(x, [&](const detail::PackedProgram& program, const at::Tensor& checked) {
    program(checked, out);
  });
  if (!out.is_inference()) out.unsafeGetTensorImpl()->bump_version();
}

const std::string& PackedView::name() const { return state_->names[index_]; }

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
