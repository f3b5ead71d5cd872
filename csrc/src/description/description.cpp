#include "nsn/description/description.h"

#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <unordered_map>
#include <unordered_set>

#include "blocks/reading.h"
#include "blocks/support.h"
#include "description/cells.h"
#include "description/subnetworks.h"

namespace nsn {

namespace {

constexpr size_t kMostSubnetworks = 1024;

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

/// The names inside, and the options of a block of one's own, which may be any text.
void check_block(const std::string& name, const Block& block) {
  if (!detail::is_builtin(block.type())) {
    const auto options = detail::Json::parse(block.options_json(), /*cb=*/nullptr,
                                             /*allow_exceptions=*/false);
    TORCH_CHECK_VALUE(options.is_object(), "nsn::Description: block '", name, "' (", block.type(),
                      "): its options_json must be a JSON object, but is ",
                      block.options_json().substr(0, 60), ". Return {} where it has no options.");
  }
  for (const InnerBlock& inner : block.inner()) {
    check_name(inner.name, "inner block");
    check_block(name + "." + inner.name, *inner.block);
  }
}

bool has_modes(const Block& block) {
  const auto inner = block.inner();
  return !detail::is_builtin(block.type()) || block.type() == "BatchNorm" ||
         block.type() == "Dropout" || block.dropout().value_or(0.0) > 0.0 ||
         std::any_of(inner.begin(), inner.end(),
                     [](const InnerBlock& each) { return has_modes(*each.block); });
}

/// Refuses a rule of a block's own for a parameter that belongs to another block.
void check_own_rule(const Description::NamedBlock& block) {
  for (const ParameterSpec& spec : block.parameters) {
    TORCH_CHECK_VALUE(spec.tied_to.empty() || !block.block->inner().empty(),
                      "nsn::Description: block '", block.name, "' (", block.block->type(),
                      ") has a merge rule of its own, but '", spec.tied_to,
                      "', which it uses, belongs to another block, whose rule merges its "
                      "gradients. Give the rule to that block.");
  }
}

}  // namespace

Description::Description(const NetworkOptions& options)
    : input_(options.input_),
      dtype_(options.dtype_),
      parameter_dtype_(
          options.parameter_dtype_.value_or(at::isFloatingType(dtype_) ? dtype_ : at::kFloat)),
      subnetworks_(std::make_shared<std::vector<Subnetwork>>()),
      merge_(options.merge_) {
  TORCH_CHECK_VALUE(!input_.empty(),
                    "nsn::Description: the network's input has no shape. Give the shape of one "
                    "sample without the batch dimension, such as 784.");
  checked_numel(input_, "the network's input");
  TORCH_CHECK_VALUE(at::isFloatingType(dtype_) || at::isIntegralType(dtype_, /*includeBool=*/false),
                    "nsn::Description: the network's input dtype must be a floating or an integral "
                    "one, but got ",
                    dtype_, ". Use float32.");
  TORCH_CHECK_VALUE(at::isFloatingType(parameter_dtype_),
                    "nsn::Description: the parameters' dtype "
                    "must be a floating one, but got ",
                    parameter_dtype_, ". Use float32.");
  TORCH_CHECK_VALUE(!at::isFloatingType(dtype_) || parameter_dtype_ == dtype_,
                    "nsn::Description: the parameters' dtype must be that of the floating input, ",
                    dtype_, ", but got ", parameter_dtype_, ". Give the input's alone.");
  add_blocks(options);

  detail::BlockLookup lookup(blocks_);
  add_subnetworks(options, lookup);
  add_parameters();
  for (Subnetwork& subnetwork : *subnetworks_) settle(subnetwork);
  add_users();
  cells_ = std::make_shared<detail::Cells>(std::move(lookup));
  add_grid(options.axes_);
  check_slices(make_choices());
  check_rules();
}

void Description::add_subnetworks(const NetworkOptions& options,
                                  const detail::BlockLookup& lookup) {
  TORCH_CHECK_VALUE(options.subnetworks_.size() <= kMostSubnetworks,
                    "nsn::Description: a network has at most ", kMostSubnetworks,
                    " sub-networks, but got ", options.subnetworks_.size(), ". Describe fewer.");
  std::unordered_set<std::string> names;
  for (const auto& [name, subnetwork] : options.subnetworks_) {
    check_name(name, "sub-network");
    TORCH_CHECK_VALUE(names.insert(name).second, "nsn::Description: two sub-networks are named '",
                      name, "'. Rename one.");
  }
  // "base" comes first, and has all blocks unless it is described.
  std::vector<std::pair<std::string, SubnetworkOptions>> all;
  const auto base =
      std::find_if(options.subnetworks_.begin(), options.subnetworks_.end(),
                   [](const auto& subnetwork) { return subnetwork.first == detail::kBase; });
  if (base != options.subnetworks_.end()) {
    all.push_back(*base);
  } else {
    all.emplace_back(detail::kBase, SubnetworkOptions());
  }
  for (const auto& subnetwork : options.subnetworks_) {
    if (subnetwork.first != detail::kBase) all.push_back(subnetwork);
  }
  std::vector<std::string> every;
  for (const auto& block : blocks_) every.push_back(block.name);
  size_t fits = 0;
  for (auto& [name, subnetwork] : all) {
    if (subnetwork.keeps_all_) subnetwork.blocks_ = every;
    for (const std::string& block : subnetwork.blocks()) {
      const auto place = lookup.places.find(block);
      if (place != lookup.places.end()) fits += lookup.counts[place->second];
    }
    TORCH_CHECK_VALUE(fits <= detail::kMostFits,
                      "nsn::Description: the sub-networks keep more than ", detail::kMostFits,
                      " blocks together, counting those inside blocks. Describe fewer.");
    subnetworks_->push_back(
        detail::make_subnetwork(name, subnetwork, blocks_, lookup, input_, dtype_));
  }

  std::vector<bool> kept(blocks_.size(), false);
  for (const Subnetwork& subnetwork : *subnetworks_) {
    for (const size_t block : subnetwork.blocks) kept[block] = true;
  }
  for (const size_t block : c10::irange(blocks_.size())) {
    TORCH_CHECK_VALUE(kept[block], "nsn::Description: no sub-network keeps block '",
                      blocks_[block].name, "'. Remove it, or add it to a sub-network.");
  }
}

void Description::add_blocks(const NetworkOptions& options) {
  TORCH_CHECK_VALUE(!options.blocks_.empty(),
                    "nsn::Description: the network has no blocks. Add at least one, such as a "
                    "Dense of 784 and 10 features.");
  std::unordered_set<std::string> names;
  for (const auto& given : options.blocks_) {
    check_name(given.name, "block");
    TORCH_CHECK_VALUE(names.insert(given.name).second, "nsn::Description: two blocks are named '",
                      given.name, "'. Rename one.");
    TORCH_CHECK_VALUE(given.block != nullptr, "nsn::Description: block '", given.name,
                      "' is null. Give its options, for example DenseOptions(784, 10).");
    check_block(given.name, *given.block);
    blocks_.push_back({given.name, given.block, given.block->parameters(),
                       given.rule.value_or(merge_), given.rule.has_value()});
    for (const ParameterSpec& parameter : blocks_.back().parameters) {
      checked_numel(parameter.shape, "parameter '" + given.name + "." + parameter.name + "'");
    }
  }
}

void Description::check_rules() const {
  std::unordered_set<std::string> known;
  for (const Subnetwork& subnetwork : *subnetworks_) known.insert(subnetwork.name);
  for (const NamedBlock& block : blocks_) {
    TORCH_CHECK_VALUE(block.rule.weights().empty() || grid_.size() == 0,
                      "nsn::Description: merge rule 'weighted' of block '", block.name,
                      "' names each sub-network, but those of a grid are not listed. Use another "
                      "rule, such as mean().");
    for (const auto& [name, coefficient] : block.rule.weights()) {
      static_cast<void>(coefficient);
      TORCH_CHECK_VALUE(known.count(name) > 0, "nsn::Description: merge rule 'weighted' of block '",
                        block.name, "' names a sub-network that does not exist: '", name,
                        "'. The sub-networks are ", detail::quoted(names()), ".");
    }
  }
  for (const NamedBlock& block : blocks_) {
    if (block.overrides_rule) check_own_rule(block);
    try {
      block.block->check_rule(block.rule);
    } catch (const Misfit& problem) {
      TORCH_CHECK_VALUE(false, "nsn::Description: block '", block.name, "' (", block.block->type(),
                        ") cannot obey merge rule '", block.rule.name(), "': ", problem.what());
    }
  }
  // Asking for all coefficients once finds a weighted rule that leaves out a sub-network.
  for (const size_t p : c10::irange(parameters_.size())) {
    if (blocks_[parameters_[p].block].rule.weights().empty() || parameters_[p].subnetwork) continue;
    std::vector<merge::Lane> lanes;
    for (const User& user : users_of(p)) lanes.push_back(lane(user.subnetwork));
    blocks_[parameters_[p].block].rule.coefficients(lanes);
  }
}

std::vector<std::string> Description::blocks_with_modes() const {
  std::unordered_set<std::string> set;
  for (const Subnetwork& subnetwork : *subnetworks_) {
    for (const auto& [block, probability] : subnetwork.options.dropout()) {
      static_cast<void>(probability);
      set.insert(block);
    }
  }
  std::vector<std::string> result;
  for (const NamedBlock& block : blocks_) {
    if (set.count(block.name) > 0 || has_modes(*block.block)) result.push_back(block.name);
  }
  return result;
}

std::vector<std::string> Description::names() const {
  std::vector<std::string> result;
  for (const Subnetwork& subnetwork : *subnetworks_) result.push_back(subnetwork.name);
  return result;
}

std::optional<size_t> Description::find(const std::string& subnetwork) const {
  const auto found = std::find_if(subnetworks_->begin(), subnetworks_->end(),
                                  [&](const auto& each) { return each.name == subnetwork; });
  if (found != subnetworks_->end()) return static_cast<size_t>(found - subnetworks_->begin());
  const auto cell = grid_.find(subnetwork);
  if (!cell) return std::nullopt;
  return subnetworks_->size() + *cell;
}

size_t Description::index_of(const std::string& subnetwork) const {
  const auto place = find(subnetwork);
  if (place) return *place;
  TORCH_CHECK_VALUE(false, "nsn: there is no sub-network '", subnetwork, "'. The sub-networks are ",
                    detail::names_in(*this), ".");
}

std::string Description::name(size_t place) const {
  return is_listed(place) ? (*subnetworks_)[place].name : grid_.name(place - subnetworks_->size());
}

Description::SubnetworkPtr Description::subnetwork(const std::string& name) const {
  return subnetwork(index_of(name));
}

merge::Lane Description::lane(size_t place) const {
  const SubnetworkPtr own = subnetwork(place);
  return {own->name, own->parameter_count, place};
}

}  // namespace nsn
