#include "description/cells.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <utility>

// The sub-networks of a grid, each made where it is first asked for.

namespace nsn {

namespace {

/// Whether a slice is another than all of those known. Refuses one that has no view in common with
/// them, as for sub-networks that are listed.
bool is_new(const std::vector<Layout>& slices, const Layout& slice, const std::string& parameter,
            const std::string& subnetwork) {
  if (std::find(slices.begin(), slices.end(), slice) != slices.end()) return false;
  std::vector<const Layout*> all{&slice};
  for (const Layout& each : slices) all.push_back(&each);
  TORCH_CHECK_VALUE(common_view(all), "nsn::Description: parameter '", parameter,
                    "': the slice of it that sub-network '", subnetwork,
                    "' uses does not fit together with those of others. Give the axes widths that "
                    "are multiples of each other's parts.");
  return true;
}

}  // namespace

/// Checks each choice of each axis, with the others at their largest, and all at their smallest.
void Description::add_grid(std::vector<GridAxis> axes, detail::BlockLookup lookup) {
  grid_ = Grid(std::move(axes));
  cells_ = std::make_shared<detail::Cells>(std::move(lookup));
  if (grid_.size() == 0) return;
  const Subnetwork& base = subnetworks_[0];
  for (const Subnetwork& subnetwork : subnetworks_) {
    TORCH_CHECK_VALUE(!grid_.find(subnetwork.name), "nsn::Description: sub-network '",
                      subnetwork.name, "' has the name of one of the grid's. Rename it.");
  }
  for (const size_t i : c10::irange(base.blocks.size())) {
    const NamedBlock& block = blocks_[base.blocks[i]];
    for (const ParameterSpec& spec : block.parameters) {
      TORCH_CHECK_VALUE(!spec.per_subnetwork, "nsn::Description: '", block.name, ".", spec.name,
                        "' is each sub-network's own, but those of a grid have none of their own. "
                        "Leave out per_subnetwork in block '",
                        block.name, "', or list the sub-networks.");
    }
  }
  for (const GridAxis& axis : grid_.axes()) {
    const auto* depths = std::get_if<Depths>(&axis.range);
    if (depths == nullptr) continue;
    for (const std::string& block : depths->drops) {
      const auto& kept = base.options.blocks();
      TORCH_CHECK_VALUE(std::find(kept.begin(), kept.end(), block) != kept.end(),
                        "nsn::Description: axis '", axis.name, "' drops block '", block,
                        "', which base does not keep. It keeps ", detail::quoted(kept), ".");
    }
  }
  cells_->slices.resize(parameters_.size());
  for (const Subnetwork& subnetwork : subnetworks_) {
    for (const auto& [parameter, use] : subnetwork.uses) {
      static_cast<void>(use);
      auto& known = cells_->slices[parameter];
      const Layout& slice = *subnetwork.slice_of(parameter);
      const bool is_private = parameters_[parameter].subnetwork.has_value();
      if (!is_private && std::find(known.begin(), known.end(), slice) == known.end()) {
        known.push_back(slice);
      }
    }
  }
  auto choices = grid_.choices(grid_.size() - 1);
  for (const size_t i : c10::irange(choices.size())) {
    const size_t largest = choices[i];
    int64_t count = 0;
    for (const size_t choice : c10::irange(largest + 1)) {
      choices[i] = choice;
      const int64_t own = make_cell(grid_.cell(choices)).parameter_count;
      TORCH_CHECK_VALUE(own >= count, "nsn::Description: choice ", choice, " of axis '",
                        grid_.axes()[i].name, "' has fewer parameters, ", own, ", than the one ",
                        "before it, ", count, ". List them from the smallest to the largest.");
      count = own;
    }
  }
  make_cell(0);
}

/// For callers that hold the mutex, or are the only ones.
Description::Subnetwork Description::make_cell(size_t cell) const {
  const Subnetwork& base = subnetworks_[0];
  Subnetwork result = detail::make_subnetwork(grid_.name(cell), grid_.options(cell, base.options),
                                              blocks_, cells_->lookup, input_, dtype_);
  for (const size_t block : result.blocks) {
    result.places.push_back(base.places[*detail::position(base.blocks, block)]);
  }
  settle(result);
  std::vector<std::pair<size_t, const Layout*>> added;
  for (const auto& [parameter, use] : result.uses) {
    static_cast<void>(use);
    const Layout* slice = result.slice_of(parameter);
    if (is_new(cells_->slices[parameter], *slice, parameters_[parameter].name, result.name)) {
      added.emplace_back(parameter, slice);
    }
  }
  for (const auto& [parameter, slice] : added) cells_->slices[parameter].push_back(*slice);
  return result;
}

const Description::Subnetwork& Description::subnetwork(size_t place) const {
  if (place < subnetworks_.size()) return subnetworks_[place];
  TORCH_CHECK_VALUE(place < places(), "nsn: there is no sub-network ", place, "; there are ",
                    places(), ".");
  const size_t cell = place - subnetworks_.size();
  const std::lock_guard<std::mutex> lock(cells_->mutex);
  auto& made = cells_->made[cell];
  if (!made) made = std::make_unique<const Subnetwork>(make_cell(cell));
  return *made;
}

}  // namespace nsn
