#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "blocks/support.h"
#include "description/cells.h"
#include "description/subnetworks.h"
#include "nsn/description/description.h"

// The parameters of a description: their table, who uses which slice of them, and how many there
// are.

namespace nsn {

bool Description::Parameter::takes(at::ScalarType other) const {
  return at::isFloatingType(dtype) ? at::isFloatingType(other) : other == dtype;
}

void Description::Parameter::check(const at::Tensor& tensor, const char* function) const {
  TORCH_CHECK_VALUE(tensor.defined(), function, ": parameter '", name,
                    "' is undefined. Give a tensor of shape ", to_string(shape), ".");
  TORCH_CHECK_VALUE(tensor.sizes() == at::IntArrayRef(shape), function, ": parameter '", name,
                    "' must have shape ", to_string(shape), ", but has ",
                    to_string(tensor.sizes().vec()), ". Put a tensor of that shape there.");
  const bool is_floating = at::isFloatingType(dtype);
  const auto found = tensor.scalar_type();
  TORCH_CHECK_VALUE(takes(found), function, ": parameter '", name, "' must ",
                    is_floating ? "be floating" : std::string("have dtype ") + c10::toString(dtype),
                    ", but has dtype ", found, ". Convert it with to().");
}

void Description::check_count(at::TensorList tensors, const char* function) const {
  TORCH_CHECK_VALUE(tensors.size() == parameters_.size(), function, ": expected ",
                    parameters_.size(), " parameters, but got ", tensors.size(),
                    ". Give those of the description, in its order.");
}

/// The table: each block's parameters, a private one once for each sub-network that keeps the
/// block.
void Description::add_parameters() {
  for (Subnetwork& subnetwork : *subnetworks_) subnetwork.places.resize(subnetwork.blocks.size());
  std::unordered_map<std::string, size_t> table;
  std::unordered_set<size_t> tied;
  for (const bool ties : {false, true}) {
    for (const size_t b : c10::irange(blocks_.size())) {
      for (const size_t p : c10::irange(blocks_[b].parameters.size())) {
        const ParameterSpec& spec = blocks_[b].parameters[p];
        const std::string name = blocks_[b].name + "." + spec.name;
        if (spec.tied_to.empty() == ties) continue;
        if (ties) {
          const auto owner = table.find(spec.tied_to);
          TORCH_CHECK_VALUE(owner != table.end(), "nsn::Description: block '", blocks_[b].name,
                            "' (", blocks_[b].block->type(), ") uses the parameter '", spec.tied_to,
                            "', which no block has. Name an Embedding of this network.");
          TORCH_CHECK_VALUE(parameters_[owner->second].shape == spec.shape,
                            "nsn::Description: block '", blocks_[b].name, "' (",
                            blocks_[b].block->type(), ") uses the parameter '", spec.tied_to,
                            "' in the shape ", to_string(spec.shape), ", but it has ",
                            to_string(parameters_[owner->second].shape), ". Make them equal.");
          tied.insert(owner->second);
        }
        const auto dtype = spec.dtype.value_or(parameter_dtype());
        if (!ties && !spec.per_subnetwork) {
          table.emplace(name, parameters_.size());
          parameters_.push_back({name, spec.shape, dtype, spec.decays, spec.is_buffer, b, p,
                                 std::nullopt, spec.counts_batches});
        }
        for (const size_t s : c10::irange(subnetworks_->size())) {
          Subnetwork& subnetwork = (*subnetworks_)[s];
          const auto at = detail::position(subnetwork.blocks, b);
          if (!at) continue;
          auto& places = subnetwork.places[*at];
          places.resize(blocks_[b].parameters.size());
          if (spec.per_subnetwork) {
            places[p] = {parameters_.size(), /*is_private=*/true};
            parameters_.push_back({name + "_" + subnetwork.name,
                                   kept_shape(subnetwork.fits[*at].slices[p]), dtype, spec.decays,
                                   spec.is_buffer, b, p, s, spec.counts_batches});
          } else {
            places[p] = {ties ? table.at(spec.tied_to) : parameters_.size() - 1};
          }
        }
      }
    }
  }
  std::unordered_set<std::string> names;
  for (const Parameter& parameter : parameters_) {
    TORCH_CHECK_VALUE(names.insert(parameter.name).second,
                      "nsn::Description: two tensors are named '", parameter.name,
                      "'. Rename the block or sub-network.");
  }
  for (Subnetwork& subnetwork : *subnetworks_) {
    for (auto& places : subnetwork.places) {
      for (ParameterPlace& place : places) place.is_tied = tied.count(place.place) > 0;
    }
  }
}

/// What follows from places: for each parameter its first use, for a tied one the slice that covers
/// all uses, and how many elements it is together.
void Description::settle(Subnetwork& subnetwork) const {
  for (const size_t i : c10::irange(subnetwork.blocks.size())) {
    for (const size_t p : c10::irange(subnetwork.places[i].size())) {
      const ParameterPlace& place = subnetwork.places[i][p];
      subnetwork.uses.emplace(place.place, Subnetwork::Use{i, p});
      if (!place.is_tied) continue;
      const Layout& slice = subnetwork.fits[i].slices[p];
      Layout& covered = subnetwork.tied.emplace(place.place, slice).first->second;
      for (const size_t dim : c10::irange(slice.size())) {
        if (covered[dim] == slice[dim]) continue;
        TORCH_CHECK_VALUE(covered[dim].is_leading() && slice[dim].is_leading(),
                          "nsn::Description: sub-network '", subnetwork.name,
                          "' uses the parameter '", parameters_[place.place].name,
                          "' in two slices that have no common one: ", to_string(covered), " and ",
                          to_string(slice), ". Give both uses one width.");
        if (slice[dim].kept() > covered[dim].kept()) covered[dim] = slice[dim];
      }
    }
  }
  for (const auto& [parameter, _] : subnetwork.uses) {
    if (parameters_[parameter].is_buffer) continue;
    const int64_t count = c10::multiply_integers(kept_shape(*subnetwork.slice_of(parameter)));
    subnetwork.parameter_count = detail::saturating_add(subnetwork.parameter_count, count);
  }
}

const Layout* Description::Subnetwork::slice_of(size_t parameter) const {
  const auto shared = tied.find(parameter);
  if (shared != tied.end()) return &shared->second;
  const auto use = uses.find(parameter);
  return use == uses.end() ? nullptr : &fits[use->second.block].slices[use->second.spec];
}

bool Description::Subnetwork::is_same_as(const Subnetwork& other) const {
  if (blocks != other.blocks || output != other.output || uses != other.uses) return false;
  for (const size_t i : c10::irange(fits.size())) {
    if (fits[i].use.dropout != other.fits[i].use.dropout) return false;
  }
  return std::all_of(uses.begin(), uses.end(), [&](const auto& use) {
    return *slice_of(use.first) == *other.slice_of(use.first);
  });
}

/// Tells who uses each parameter.
void Description::add_users() {
  users_.resize(parameters_.size());
  for (const size_t s : c10::irange(subnetworks_->size())) {
    for (const auto& [parameter, _] : (*subnetworks_)[s].uses) users_[parameter].push_back(s);
  }
}

/// Finds where slices of each parameter may be parted, from those of the listed sub-networks and of
/// the grid's choices, and refuses those that cannot be.
void Description::check_slices(const std::vector<Subnetwork>& choices) {
  cells_->borders.resize(parameters_.size());
  const auto each = [&](const auto& act) {
    for (const Subnetwork& subnetwork : *subnetworks_) act(subnetwork);
    for (const Subnetwork& subnetwork : choices) act(subnetwork);
  };
  each([&](const Subnetwork& subnetwork) {
    for (const auto& [parameter, _] : subnetwork.uses) {
      if (parameters_[parameter].subnetwork) continue;
      cells_->borders[parameter].add(*subnetwork.slice_of(parameter));
    }
  });
  each([&](const Subnetwork& subnetwork) { check_slices(subnetwork); });
}

void Description::check_slices(const Subnetwork& subnetwork) const {
  for (const auto& [parameter, _] : subnetwork.uses) {
    if (parameters_[parameter].subnetwork) continue;
    TORCH_CHECK_VALUE(cells_->borders[parameter].fit(*subnetwork.slice_of(parameter)),
                      "nsn::Description: parameter '", parameters_[parameter].name,
                      "': the sub-networks' slices of it do not fit together, that of '",
                      subnetwork.name,
                      "' with the others'. Give them widths that are multiples of each other's "
                      "parts.");
  }
}

std::vector<Description::User> Description::users_of(size_t parameter) const {
  std::vector<User> result;
  for (const size_t s : users_[parameter]) {
    result.push_back({s, (*subnetworks_)[s].slice_of(parameter)});
  }
  return result;
}

std::vector<size_t> Description::siblings_of(size_t parameter) const {
  std::vector<size_t> result;
  const Parameter& own = parameters_[parameter];
  // Those of one block and specification stand beside each other.
  const auto is_sibling = [&](size_t other) {
    return parameters_[other].block == own.block && parameters_[other].spec == own.spec;
  };
  size_t first = parameter, last = parameter;
  while (first > 0 && is_sibling(first - 1)) --first;
  while (last + 1 < parameters_.size() && is_sibling(last + 1)) ++last;
  for (const size_t other : c10::irange(first, last + 1)) {
    if (other != parameter) result.push_back(other);
  }
  return result;
}

int64_t Description::parameter_count() const noexcept {
  int64_t count = 0;
  for (const Parameter& parameter : parameters_) {
    if (parameter.is_buffer) continue;
    count = detail::saturating_add(count, c10::multiply_integers(parameter.shape));
  }
  return count;
}

std::vector<std::string> Description::parameter_names() const {
  std::vector<std::string> result;
  for (const Parameter& parameter : parameters_) result.push_back(parameter.name);
  return result;
}

}  // namespace nsn
