#include "description/cells.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <variant>

// The sub-networks of a grid, each made where it is first asked for.

namespace nsn {

void Description::add_grid(std::vector<GridAxis> axes) {
  grid_ = Grid(std::move(axes));
  if (grid_.size() == 0) return;
  const Subnetwork& base = (*subnetworks_)[0];
  for (const Subnetwork& subnetwork : *subnetworks_) {
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
  // Each is made, and fits of blocks are what takes time and memory.
  size_t blocks = 0, choices = 0;
  for (const size_t block : base.blocks) blocks += cells_->lookup.counts[block];
  for (const GridAxis& axis : grid_.axes()) choices += 2 * axis.choices();
  TORCH_CHECK_VALUE(choices <= detail::kMostFits / blocks,
                    "nsn::Description: the choices of all axes keep more than ",
                    detail::kMostFits / 2,
                    " blocks together, counting those inside blocks. Give fewer choices.");
  for (const GridAxis& axis : grid_.axes()) {
    const auto* depths = std::get_if<Depths>(&axis.range);
    if (depths == nullptr) continue;
    for (const std::string& block : depths->drops) {
      const auto& kept = base.options.blocks();
      TORCH_CHECK_VALUE(std::count(depths->drops.begin(), depths->drops.end(), block) == 1,
                        "nsn::Description: axis '", axis.name, "' drops block '", block,
                        "' twice. Name it once.");
      TORCH_CHECK_VALUE(std::find(kept.begin(), kept.end(), block) != kept.end(),
                        "nsn::Description: axis '", axis.name, "' drops block '", block,
                        "', which base does not keep. It keeps ", detail::quoted(kept), ".");
    }
  }
}

namespace {

/// Says of which choice of which axis it is where `make` throws.
template <typename Make>
auto for_choice(const GridAxis& axis, size_t choice, const char* others, const Make& make) {
  try {
    return make();
  } catch (const c10::ValueError& error) {
    constexpr std::string_view kPrefix = "nsn::Description: ";
    const std::string own = error.what_without_backtrace();
    TORCH_CHECK_VALUE(false, kPrefix, "axis '", axis.name, "', choice ", choice,
                      " (the others at their ", others,
                      "): ", own.substr(own.starts_with(kPrefix) ? kPrefix.size() : 0));
  }
}

}  // namespace

/// Each choice of each axis, with the others at their largest and at their smallest.
std::vector<Description::Subnetwork> Description::make_choices() const {
  std::vector<Subnetwork> made;
  if (grid_.size() == 0) return made;
  const auto largest = grid_.choices(grid_.size() - 1);
  const std::vector<size_t> smallest(largest.size(), 0);
  for (const size_t i : c10::irange(largest.size())) {
    const GridAxis& axis = grid_.axes()[i];
    auto wide = largest, narrow = smallest;
    int64_t before = 0;
    for (const size_t choice : c10::irange(largest[i] + 1)) {
      wide[i] = narrow[i] = choice;
      made.push_back(
          for_choice(axis, choice, "smallest", [&] { return make_cell(grid_.cell(narrow)); }));
      made.push_back(
          for_choice(axis, choice, "largest", [&] { return make_cell(grid_.cell(wide)); }));
      const int64_t own = made.back().parameter_count;
      const bool is_width = std::holds_alternative<Widths>(axis.range);
      TORCH_CHECK_VALUE(own > before || (own == before && !is_width), "nsn::Description: choice ",
                        choice, " of axis '", axis.name, "' has ", own,
                        " parameters, and the one before it ", before,
                        ". List them from the smallest to the largest, each once.");
      before = own;
    }
  }
  return made;
}

Description::Subnetwork Description::make_cell(size_t cell) const {
  const Subnetwork& base = (*subnetworks_)[0];
  Subnetwork result = detail::make_subnetwork(grid_.name(cell), grid_.options(cell, base.options),
                                              blocks_, cells_->lookup, input_, dtype_);
  for (const size_t block : result.blocks) {
    result.places.push_back(base.places[*detail::position(base.blocks, block)]);
  }
  settle(result);
  return result;
}

Description::SubnetworkPtr Description::subnetwork(size_t place) const {
  if (place < subnetworks_->size()) return {subnetworks_, &(*subnetworks_)[place]};
  TORCH_CHECK_VALUE(place < places(), "nsn: there is no sub-network ", place, "; there are ",
                    places(), ".");
  const size_t cell = place - subnetworks_->size();
  return cells_->recent.get(cell, [&] {
    Subnetwork made = make_cell(cell);
    check_slices(made);
    return made;
  });
}

}  // namespace nsn
