#include "nsn/network/core.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "blocks/modules.h"
#include "blocks/slices.h"
#include "description/cells.h"
#include "kernels/mix.h"
#include "network/by_lane.h"
#include "network/input.h"
#include "network/parameters.h"
#include "nsn/functional/functional.h"
#include "nsn/operations/cpu.h"
#include "operations/autocast.h"
#include "operations/lanes.h"
#include "operations/workspace.h"
#include "values/recent.h"
#include "values/regions.h"

namespace nsn {

namespace {

constexpr size_t kNone = static_cast<size_t>(-1);

void check_lanes(const Description& description, c10::ArrayRef<size_t> subnetworks) {
  TORCH_CHECK_VALUE(!subnetworks.empty(),
                    "nsn::Network: a joint pass needs at least one sub-network, but got "
                    "none. Name some.");
  for (const size_t lane : c10::irange(subnetworks.size())) {
    const size_t subnetwork = subnetworks[lane];
    TORCH_CHECK_VALUE(subnetwork < description.places(), "nsn::Core: there is no sub-network ",
                      subnetwork, "; there are ", description.places(), ".");
    TORCH_CHECK_VALUE(std::find(subnetworks.begin(), subnetworks.begin() + lane, subnetwork) ==
                          subnetworks.begin() + lane,
                      "nsn::Network: sub-network '", description.name(subnetwork),
                      "' is asked for twice. Name it once.");
  }
}

}  // namespace

uint64_t draw_seed() {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

Core::Core(Description description)
    : description_(std::move(description)),
      recent_(std::make_unique<detail::Recent<Passage>>(detail::kKeptCells)),
      workspace_(std::make_shared<Workspace>()) {
  cpu_level();  // throws where another was asked for than there is
  for (const size_t s : c10::irange(description_.subnetworks().size())) {
    passages_.push_back(std::make_shared<const Passage>(trace(s)));
    has_tied_ = has_tied_ || !description_.subnetworks()[s].tied.empty();
  }
}

Core::~Core() = default;

/// What a sub-network passes block by block, with the ways before and behind each.
Core::Passage Core::trace(size_t s) const {
  Passage result{description_.subnetwork(s), {}};
  const auto& subnetwork = *result.subnetwork;
  const merge::Lane lane = description_.lane(s);
  uint64_t way = 0;  // the network's input, which all share
  for (const size_t i : c10::irange(subnetwork.blocks.size())) {
    const auto& block = description_.blocks()[subnetwork.blocks[i]];
    const uint64_t next = detail::next_way(way, subnetwork.blocks[i], subnetwork.fits[i],
                                           detail::has_private_parts(block.parameters), s);
    result.blocks.push_back({lane, s, &subnetwork.fits[i], subnetwork.places[i].data(), way, next});
    way = next;
  }
  return result;
}

Core::PassagePtr Core::passage_of(size_t s) const {
  if (description_.is_listed(s)) return passages_[s];
  return recent_->get(s, [&] { return trace(s); });
}

std::vector<Core::PassagePtr> Core::passages_of(c10::ArrayRef<size_t> subnetworks) const {
  check_lanes(description_, subnetworks);
  std::vector<PassagePtr> result;
  for (const size_t s : subnetworks) result.push_back(passage_of(s));
  return result;
}

std::vector<at::Tensor> Core::initial_parameters() const {
  const at::NoGradGuard no_grad;
  const auto& table = description_.parameters();
  std::vector<at::Tensor> result(table.size());
  for (const size_t b : c10::irange(description_.blocks().size())) {
    const auto& block = description_.blocks()[b];
    std::vector<at::Tensor> own;
    if (const auto module = block.block->module()) {
      own = detail::tensors_of(*module);
    } else {
      for (const ParameterSpec& parameter : block.parameters) {
        const auto dtype = parameter.dtype.value_or(description_.parameter_dtype());
        own.push_back(at::empty(parameter.shape, at::TensorOptions().dtype(dtype)));
      }
      block.block->initialize(own);
    }
    for (const size_t place : c10::irange(table.size())) {
      if (table[place].block != b) continue;
      const at::Tensor& whole = own[table[place].spec];
      result[place] = table[place].subnetwork
                          ? detail::slice_of(whole, *description_.users_of(place)[0].slice).clone()
                          : whole;
    }
  }
  return result;
}

void Core::check_input(const at::Tensor& x) const {
  detail::check_input(x, description_.input(), description_.dtype());
}

void Core::check_parameters(at::TensorList parameters, const BlockPass& pass, size_t place,
                            const at::Tensor& x) const {
  const auto& block = description_.blocks()[place];
  const auto check = [&](size_t at) {
    const at::Tensor& parameter = parameters[at];
    const Description::Parameter& expected = description_.parameters()[at];
    expected.check(parameter);
    // Autocast brings floating dtypes to one, but for float64.
    const bool casts = detail::autocast_dtype(parameter) && x.scalar_type() != at::kDouble;
    if (!casts && !expected.is_buffer) {
      detail::check_dtype(x, expected.name, parameter.scalar_type());
    }
  };
  for (const size_t p : c10::irange(block.parameters.size())) {
    const size_t lanes = block.parameters[p].per_subnetwork ? pass.lanes.size() : 1;
    for (const size_t lane : c10::irange(lanes)) check(pass.lanes[lane].parameters[p].place);
  }
}

/// One share node for each tied parameter, over all lanes of the pass that use it.
void Core::share_tied(at::TensorList parameters, const std::vector<PassagePtr>& lanes,
                      const Mode& mode, TiedSlices& tied) const {
  std::map<size_t, std::vector<const Passage*>> users;
  for (const PassagePtr& lane : lanes) {
    for (const auto& [place, _] : lane->subnetwork->tied) users[place].push_back(lane.get());
  }
  for (const auto& [place, own] : users) {
    std::vector<const Layout*> slices;
    std::vector<merge::Lane> merge_lanes;
    for (const Passage* lane : own) {
      slices.push_back(&lane->subnetwork->tied.at(place));
      merge_lanes.push_back(lane->blocks[0].lane);
    }
    const auto rule = rule_of(description_.parameters()[place].block, lanes, mode);
    const auto shared = functional::share_layouts(parameters[place], slices, rule, merge_lanes);
    for (const size_t i : c10::irange(own.size())) {
      tied[{place, own[i]->blocks[0].subnetwork}] = shared[i];
    }
  }
}

/// Blocks may be anybody's: what comes out has to be what their fit said.
void Core::check_outputs(at::TensorList outputs, const Description::NamedBlock& block,
                         const BlockPass& pass, const c10::SymInt& batch) {
  const auto name = [&] {
    return "nsn::Network: block '" + block.name + "' (" + block.block->type() + ")";
  };
  TORCH_CHECK_VALUE(outputs.size() == pass.lanes.size(), name(), " gave ", outputs.size(),
                    " outputs for ", pass.lanes.size(),
                    " sub-networks. Let its `joint` return one for each input, in order.");
  for (const size_t lane : c10::irange(outputs.size())) {
    const at::Tensor& output = outputs[lane];
    const Layout& expected = pass.lanes[lane].fit->output.layout;
    bool fits = output.defined() && output.dim() == static_cast<int64_t>(expected.size()) + 1 &&
                output.sym_size(0) == batch;
    for (size_t i = 0; fits && i < expected.size(); ++i) {
      fits = output.size(static_cast<int64_t>(i) + 1) == expected[i].kept();
    }
    if (fits) continue;
    std::string wanted = "(B";
    for (const Axis& axis : expected) wanted += ", " + std::to_string(axis.kept());
    TORCH_CHECK_VALUE(false, name(), " must give sub-network '", pass.lanes[lane].lane.name,
                      "' an output of shape ", wanted, "), as its fit says, but gave ",
                      output.defined() ? to_string(output.sizes().vec()) : "an undefined tensor",
                      ". Change its `fit` (or `output_shape`), or what it computes.");
  }
}

std::vector<at::Tensor> Core::joint(at::TensorList parameters, const at::Tensor& x,
                                    c10::ArrayRef<size_t> subnetworks, bool training) const {
  return run(parameters, x, passages_of(subnetworks), {training});
}

at::Tensor Core::evaluate(at::TensorList parameters, const at::Tensor& x,
                          const PassagePtr& passage) const {
  return run(parameters, x, {passage}, {})[0];
}

at::Tensor Core::lane(at::TensorList parameters, const at::Tensor& x,
                      c10::ArrayRef<size_t> subnetworks, size_t lane, bool training,
                      uint64_t seed) const {
  Mode mode{training};
  mode.seed = seed;
  mode.part_of = passages_of(subnetworks);
  TORCH_CHECK_VALUE(lane < subnetworks.size(), "nsn::Core: there is no lane ", lane, "; there are ",
                    subnetworks.size(), ".");
  description_.check_count(parameters);
  check_input(x);
  const std::vector<at::Tensor> own =
      detail::for_lane(description_, parameters, mode.part_of, lane, training);
  return run(own, x, {mode.part_of[lane]}, mode)[0];
}

/// The rule of a block. A lane that is part of a pass has its coefficients in the parameters
/// already (detail::for_lane), but for a wrapped module, whose parameters are not the table's.
merge::Rule Core::rule_of(size_t place, const std::vector<PassagePtr>& lanes,
                          const Mode& mode) const {
  const auto& block = description_.blocks()[place];
  if (mode.part_of.empty()) return block.rule;
  if (!block.block->module()) return merge::sum();
  std::vector<merge::Lane> merged;
  size_t own = 0;
  for (const PassagePtr& each : mode.part_of) {
    const auto& kept = each->subnetwork->blocks;
    if (std::find(kept.begin(), kept.end(), place) == kept.end()) continue;
    if (each == lanes[0]) own = merged.size();
    merged.push_back(each->blocks[0].lane);
  }
  return merge::weighted({{merged[own].name, block.rule.coefficients(merged)[own]}});
}

namespace {

/// Kernels read memory: a sign that torch has yet to apply would be lost. The table itself, or one
/// in `resolved`.
at::TensorList with_signs_applied(at::TensorList table, const Description& description,
                                  std::vector<at::Tensor>& resolved) {
  const bool has_signs = std::any_of(table.begin(), table.end(), [](const at::Tensor& each) {
    return each.defined() && each.is_neg();
  });
  if (!has_signs) return table;
  for (const size_t i : c10::irange(table.size())) {
    const bool resolves = table[i].defined() && !description.parameters()[i].is_buffer;
    resolved.push_back(resolves ? table[i].resolve_neg() : table[i]);
  }
  return resolved;
}

}  // namespace

/// The lanes of a pass on their way through the blocks.
class Core::Walk {
 public:
  Walk(const std::vector<PassagePtr>& lanes, const at::Tensor& x)
      : lanes_(lanes),
        activations_(std::vector<at::Tensor>(lanes.size(), x)),
        done_(lanes.size(), 0) {}

  /// The block that a lane passes next; kNone behind its last.
  size_t next(size_t lane) const {
    const auto& own = lanes_[lane]->subnetwork->blocks;
    return done_[lane] == own.size() ? kNone : own[done_[lane]];
  }

  /// The lanes that pass a block next.
  std::vector<size_t> passing(size_t place) const {
    std::vector<size_t> result;
    for (const size_t lane : c10::irange(done_.size())) {
      if (next(lane) == place) result.push_back(lane);
    }
    return result;
  }

  /// Takes a lane to its next block: gives its activation, and what it passes there.
  std::pair<at::Tensor, const LanePass&> enter(size_t lane) {
    return {activations_.take(lane), lanes_[lane]->blocks[done_[lane]++]};
  }
  void leave(size_t lane, at::Tensor activation) { activations_.set(lane, std::move(activation)); }

  /// Lanes that enter the network at the block where all of `passing`, who have passed theirs, go
  /// on: with room for their input behind the outputs the block finds all that it reads stacked.
  std::vector<size_t> entering_behind(const std::vector<size_t>& passing) const {
    const size_t following = next(passing[0]);
    std::vector<size_t> result;
    if (following == kNone) return result;
    for (const size_t lane : passing) {
      if (next(lane) != following) return result;
    }
    for (const size_t lane : c10::irange(done_.size())) {
      if (done_[lane] == 0 && next(lane) == following) result.push_back(lane);
    }
    return result;
  }

  /// The outputs, which a caller may write into.
  std::vector<at::Tensor> finish() && { return std::move(activations_).for_caller(); }

 private:
  const std::vector<PassagePtr>& lanes_;
  Lanes activations_;
  /// How many blocks each lane has passed.
  std::vector<size_t> done_;
};

std::vector<at::Tensor> Core::run(at::TensorList given, const at::Tensor& given_x,
                                  const std::vector<PassagePtr>& lanes, const Mode& mode) const {
  description_.check_count(given);
  check_input(given_x);
  const at::Tensor x = given_x.is_neg() ? given_x.resolve_neg() : given_x;
  std::vector<at::Tensor> resolved;
  const at::TensorList parameters = with_signs_applied(given, description_, resolved);
  const uint64_t seed = mode.seed ? *mode.seed : mode.training ? draw_seed() : 0;
  functional::Memory memory;
  // Not for one lane after the other, which is to take little memory: their sizes differ, so that
  // much would lie idle.
  if (at::GradMode::is_enabled() && mode.part_of.empty()) {
    workspace_->begin_pass();
    memory.workspace = workspace_;
  }

  TiedSlices tied;
  if (has_tied_) share_tied(parameters, lanes, mode, tied);

  Walk walk(lanes, x);
  for (const size_t place : c10::irange(description_.blocks().size())) {
    const std::vector<size_t> passing = walk.passing(place);
    if (passing.empty()) continue;
    const auto& block = description_.blocks()[place];
    BlockPass pass{{},
                   rule_of(place, lanes, mode),
                   mode.training,
                   mode.calibrating,
                   detail::mix(seed, place),
                   memory,
                   parameters,
                   &tied,
                   block.name};
    Lanes inputs;
    for (const size_t lane : passing) {
      auto [activation, passed] = walk.enter(lane);
      inputs.push_back(std::move(activation));
      pass.lanes.push_back(passed);
    }
    check_parameters(parameters, pass, place, x);
    if (!mode.training && !mode.calibrating) {
      for (const LanePass& lane : pass.lanes) check_statistics(parameters, lane, place);
    }
    const std::vector<size_t> entering =
        x.requires_grad() ? std::vector<size_t>() : walk.entering_behind(passing);
    functional::Room room{x.numel()};
    if (!entering.empty()) pass.memory.room = &room;
    Lanes outputs = block.block->joint(std::move(inputs), pass);
    check_outputs(outputs, block, pass, x.sym_size(0));
    const at::Tensor laid = outputs.lay_behind(x, std::move(room));
    for (const size_t i : c10::irange(passing.size())) walk.leave(passing[i], outputs.take(i));
    for (const size_t lane : entering) {
      if (laid.defined()) walk.leave(lane, detail::part(laid, 0, x.sizes()));
    }
  }
  return std::move(walk).finish();
}

}  // namespace nsn
