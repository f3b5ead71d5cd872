#include "nsn/description.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cctype>
#include <numeric>
#include <unordered_map>
#include <unordered_set>

namespace nsn {

NetworkOptions& NetworkOptions::input(Shape shape, at::ScalarType dtype) {
  input_ = std::move(shape);
  dtype_ = dtype;
  return *this;
}

NetworkOptions& NetworkOptions::block(std::string name, BlockPtr block,
                                      std::optional<merge::Rule> rule) {
  blocks_.push_back({std::move(name), std::move(block), std::move(rule)});
  return *this;
}

NetworkOptions& NetworkOptions::subnetwork(std::string name, SubnetworkOptions options) {
  subnetworks_.emplace_back(std::move(name), std::move(options));
  return *this;
}

NetworkOptions& NetworkOptions::merge(merge::Rule rule) {
  merge_ = std::move(rule);
  return *this;
}

namespace {

constexpr const char* kBase = "base";

/// Names become parts of parameters' names and attributes in Python.
void check_name(const std::string& name, const char* what) {
  const auto is_word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
  };
  const bool fits = !name.empty() && std::isdigit(static_cast<unsigned char>(name[0])) == 0 &&
                    std::all_of(name.begin(), name.end(), is_word);
  TORCH_CHECK_VALUE(fits, "nsn::Description: ", what, " name '", name,
                    "' must be made of letters, digits and '_' and not start with a digit. Rename "
                    "it.");
}

std::string quoted(const std::vector<std::string>& names) {
  constexpr size_t kMost = 20;
  std::string result;
  for (const size_t i : c10::irange(std::min(names.size(), kMost))) {
    result += (i > 0 ? ", '" : "'") + names[i] + "'";
  }
  return names.size() > kMost ? result + ", ..." : result;
}

}  // namespace

Description::Description(const NetworkOptions& options)
    : input_(options.input_), dtype_(options.dtype_), merge_(options.merge_) {
  TORCH_CHECK_VALUE(!input_.empty(),
                    "nsn::Description: the network's input has no shape. Give the shape of one "
                    "sample without the batch dimension: input({784}).");
  checked_numel(input_, "the network's input");
  TORCH_CHECK_VALUE(at::isFloatingType(dtype_) || at::isIntegralType(dtype_, /*includeBool=*/false),
                    "nsn::Description: the network's input dtype must be a floating or an integral "
                    "one, but got ",
                    dtype_, ". Use float32.");
  add_blocks(options);

  std::unordered_set<std::string> names;
  for (const auto& [name, subnetwork] : options.subnetworks_) {
    check_name(name, "sub-network");
    TORCH_CHECK_VALUE(names.insert(name).second, "nsn::Description: two sub-networks are named '",
                      name, "'. Rename one.");
  }
  // "base" comes first, and has all blocks unless it is described.
  const auto base = std::find_if(options.subnetworks_.begin(), options.subnetworks_.end(),
                                 [](const auto& subnetwork) { return subnetwork.first == kBase; });
  if (base != options.subnetworks_.end()) {
    add_subnetwork(kBase, base->second);
  } else {
    std::vector<std::string> all;
    for (const auto& block : blocks_) all.push_back(block.name);
    add_subnetwork(kBase, SubnetworkOptions(std::move(all)));
  }
  for (const auto& [name, subnetwork] : options.subnetworks_) {
    if (name != kBase) add_subnetwork(name, subnetwork);
  }

  std::vector<bool> kept(blocks_.size(), false);
  for (const Subnetwork& subnetwork : subnetworks_) {
    for (const size_t block : subnetwork.blocks) kept[block] = true;
  }
  for (const size_t block : c10::irange(blocks_.size())) {
    TORCH_CHECK_VALUE(kept[block], "nsn::Description: no sub-network keeps block '",
                      blocks_[block].name, "'. Remove it, or add it to a sub-network.");
  }
  rank_subnetworks();
  check_rules();
}

void Description::add_blocks(const NetworkOptions& options) {
  TORCH_CHECK_VALUE(!options.blocks_.empty(),
                    "nsn::Description: the network has no blocks. Add at least one: "
                    "block(\"output\", DenseOptions(784, 10)).");
  std::unordered_set<std::string> names;
  size_t first_parameter = 0;
  for (const auto& given : options.blocks_) {
    check_name(given.name, "block");
    TORCH_CHECK_VALUE(names.insert(given.name).second, "nsn::Description: two blocks are named '",
                      given.name, "'. Rename one.");
    TORCH_CHECK_VALUE(given.block != nullptr, "nsn::Description: block '", given.name,
                      "' is null. Give its options, for example DenseOptions(784, 10).");
    auto parameters = given.block->parameters();
    const size_t count = parameters.size();
    blocks_.push_back({given.name, given.block, std::move(parameters), given.rule.value_or(merge_),
                       given.rule.has_value(), first_parameter});
    first_parameter += count;
  }
}

void Description::add_subnetwork(const std::string& name, const SubnetworkOptions& options) {
  TORCH_CHECK_VALUE(!options.blocks().empty(), "nsn::Description: sub-network '", name,
                    "' keeps no block. Name at least one, or remove the sub-network.");
  std::unordered_map<std::string, size_t> places;
  for (const size_t i : c10::irange(blocks_.size())) places.emplace(blocks_[i].name, i);

  Subnetwork subnetwork{name, {}, {}, input_, 0, 0};
  for (const std::string& block_name : options.blocks()) {
    const auto found = places.find(block_name);
    if (found == places.end()) {
      std::vector<std::string> all;
      for (const auto& block : blocks_) all.push_back(block.name);
      TORCH_CHECK_VALUE(false, "nsn::Description: sub-network '", name,
                        "' names a block that does not exist: '", block_name, "'. The blocks are ",
                        quoted(all), ".");
    }
    const size_t place = found->second;
    TORCH_CHECK_VALUE(subnetwork.blocks.empty() || subnetwork.blocks.back() < place,
                      "nsn::Description: sub-network '", name, "' keeps block '", block_name,
                      "' after '", blocks_[subnetwork.blocks.back()].name,
                      "', but blocks are kept in the order of the network, each once. List '",
                      block_name, "' where the network has it.");
    const NamedBlock& block = blocks_[place];
    if (subnetwork.blocks.empty()) {
      TORCH_CHECK_VALUE(block.block->takes_integers() == !at::isFloatingType(dtype_),
                        "nsn::Description: sub-network '", name, "': block '", block_name, "' (",
                        block.block->type(), ") expects ",
                        block.block->takes_integers() ? "integral" : "floating",
                        " input, but the network's input has dtype ", dtype_,
                        ". Change the input's dtype, or start with another block.");
    }
    const auto output = block.block->output_shape(subnetwork.output);
    if (!output) {
      const std::string source = subnetwork.blocks.empty()
                                     ? "the network's input"
                                     : "block '" + blocks_[subnetwork.blocks.back()].name + "'";
      TORCH_CHECK_VALUE(false, "nsn::Description: sub-network '", name, "': block '", block_name,
                        "' (", block.block->type(), ") expects ", block.block->expected_input(),
                        ", but gets ", to_string(subnetwork.output), " from ", source,
                        ". Change the options of '", block_name, "' or of ", source,
                        ", or keep a block between them that makes the one shape of the other.");
    }
    subnetwork.output = *output;
    subnetwork.blocks.push_back(place);
    subnetwork.uses.emplace_back();
    for (const ParameterSpec& parameter : block.parameters) {
      subnetwork.parameter_count +=
          checked_numel(parameter.shape, "parameter '" + block_name + "." + parameter.name + "'");
    }
  }
  for (const auto& [block_name, probability] : options.dropout()) {
    const auto found = places.find(block_name);
    const auto kept = found == places.end() ? subnetwork.blocks.end()
                                            : std::find(subnetwork.blocks.begin(),
                                                        subnetwork.blocks.end(), found->second);
    TORCH_CHECK_VALUE(kept != subnetwork.blocks.end(), "nsn::Description: sub-network '", name,
                      "' sets a dropout for block '", block_name,
                      "', which it does not keep. It keeps ", quoted(options.blocks()), ".");
    TORCH_CHECK_VALUE(blocks_[*kept].block->has_dropout(), "nsn::Description: sub-network '", name,
                      "' sets a dropout for block '", block_name, "', but a ",
                      blocks_[*kept].block->type(), " has none. Remove it.");
    TORCH_CHECK_VALUE(probability >= 0.0 && probability <= 1.0, "nsn::Description: sub-network '",
                      name, "': the dropout of block '", block_name,
                      "' must be a probability from 0 to 1, but got ", probability, ".");
    auto& use = subnetwork.uses[static_cast<size_t>(kept - subnetwork.blocks.begin())];
    TORCH_CHECK_VALUE(!use.dropout, "nsn::Description: sub-network '", name,
                      "' sets the dropout of block '", block_name, "' twice. Set it once.");
    use.dropout = probability;
  }
  subnetworks_.push_back(std::move(subnetwork));
}

void Description::rank_subnetworks() {
  std::vector<size_t> order(subnetworks_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return subnetworks_[a].parameter_count < subnetworks_[b].parameter_count;
  });
  for (const size_t i : c10::irange(order.size())) {
    subnetworks_[order[i]].rank = static_cast<int64_t>(i);
  }
}

void Description::check_rules() const {
  std::unordered_set<std::string> known;
  for (const Subnetwork& subnetwork : subnetworks_) known.insert(subnetwork.name);
  for (const NamedBlock& block : blocks_) {
    for (const auto& [name, coefficient] : block.rule.weights()) {
      static_cast<void>(coefficient);
      TORCH_CHECK_VALUE(known.count(name) > 0, "nsn::Description: merge rule 'weighted' of block '",
                        block.name, "' names a sub-network that does not exist: '", name,
                        "'. The sub-networks are ", quoted(names()), ".");
    }
  }
  // Asking for all coefficients once finds a weighted rule that leaves out a sub-network.
  for (const size_t place : c10::irange(blocks_.size())) {
    if (blocks_[place].rule.weights().empty()) continue;
    std::vector<merge::Lane> lanes;
    for (const Subnetwork& subnetwork : subnetworks_) {
      if (std::binary_search(subnetwork.blocks.begin(), subnetwork.blocks.end(), place)) {
        lanes.push_back({subnetwork.name, subnetwork.rank});
      }
    }
    blocks_[place].rule.coefficients(lanes);
  }
}

at::ScalarType Description::parameter_dtype() const noexcept {
  return at::isFloatingType(dtype_) ? dtype_ : at::kFloat;
}

std::vector<std::string> Description::names() const {
  std::vector<std::string> result;
  for (const Subnetwork& subnetwork : subnetworks_) result.push_back(subnetwork.name);
  return result;
}

size_t Description::index_of(const std::string& subnetwork) const {
  const auto found = std::find_if(subnetworks_.begin(), subnetworks_.end(),
                                  [&](const auto& each) { return each.name == subnetwork; });
  TORCH_CHECK_VALUE(found != subnetworks_.end(), "nsn: there is no sub-network '", subnetwork,
                    "'. The sub-networks are ", quoted(names()), ".");
  return static_cast<size_t>(found - subnetworks_.begin());
}

const Description::Subnetwork& Description::subnetwork(const std::string& name) const {
  return subnetworks_[index_of(name)];
}

size_t Description::parameter_tensors() const noexcept {
  return blocks_.back().first_parameter + blocks_.back().parameters.size();
}

int64_t Description::parameter_count() const noexcept {
  int64_t count = 0;
  for (const NamedBlock& block : blocks_) {
    for (const ParameterSpec& parameter : block.parameters) {
      count += std::accumulate(parameter.shape.begin(), parameter.shape.end(), int64_t{1},
                               std::multiplies<>());
    }
  }
  return count;
}

std::vector<std::string> Description::parameter_names() const {
  std::vector<std::string> result;
  for (const NamedBlock& block : blocks_) {
    for (const ParameterSpec& parameter : block.parameters) {
      result.push_back(block.name + "." + parameter.name);
    }
  }
  return result;
}

}  // namespace nsn
