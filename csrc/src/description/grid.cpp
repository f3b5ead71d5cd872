#include "nsn/description/grid.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cctype>
#include <set>

namespace nsn {

namespace {

/// So that places, and sums of them, are numbers that any language can count with.
constexpr size_t kMostCells = size_t{1} << 40;
constexpr size_t kMostChoices = 1024;
constexpr size_t kMostAxes = 64;

/// The block of "block" or "block.dimension".
std::string block_of(const std::string& target) { return target.substr(0, target.find('.')); }

void check_axis(const GridAxis& axis) {
  const auto is_word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
  };
  const auto is_digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
  TORCH_CHECK_VALUE(!axis.name.empty() &&
                        std::all_of(axis.name.begin(), axis.name.end(), is_word) &&
                        !is_digit(axis.name.front()) && !is_digit(axis.name.back()),
                    "nsn::Description: axis name '", axis.name,
                    "' must be made of letters, digits and '_', and neither start nor end with a "
                    "digit: numbers behind it make the names of sub-networks. Rename it.");
  if (const auto* widths = std::get_if<Widths>(&axis.range)) {
    TORCH_CHECK_VALUE(!widths->widths.empty() && !widths->of.empty(), "nsn::Description: axis '",
                      axis.name,
                      "' has no widths, or no blocks that have them. Give at least one of each.");
    for (const std::string& target : widths->of) {
      TORCH_CHECK_VALUE(!target.empty() && target.front() != '.' && target.back() != '.',
                        "nsn::Description: axis '", axis.name, "' has widths of '", target,
                        "', which is neither a block nor 'block.dimension'. Name one.");
    }
  } else {
    const auto& drops = std::get<Depths>(axis.range).drops;
    TORCH_CHECK_VALUE(!drops.empty(), "nsn::Description: axis '", axis.name,
                      "' drops no block. Name at least one.");
  }
  TORCH_CHECK_VALUE(axis.choices() <= kMostChoices, "nsn::Description: axis '", axis.name, "' has ",
                    axis.choices(), " choices, and at most ", kMostChoices,
                    " are possible. Give fewer.");
}

}  // namespace

size_t GridAxis::choices() const {
  if (const auto* widths = std::get_if<Widths>(&range)) return widths->widths.size();
  return std::get<Depths>(range).drops.size() + 1;
}

Grid::Grid(std::vector<GridAxis> axes) : axes_(std::move(axes)), size_(axes_.empty() ? 0 : 1) {
  TORCH_CHECK_VALUE(axes_.size() <= kMostAxes, "nsn::Description: a grid has at most ", kMostAxes,
                    " axes, but got ", axes_.size(), ". Give fewer.");
  std::set<std::string> names;
  for (const GridAxis& axis : axes_) {
    check_axis(axis);
    TORCH_CHECK_VALUE(names.insert(axis.name).second, "nsn::Description: two axes are named '",
                      axis.name, "'. Rename one.");
    TORCH_CHECK_VALUE(size_ <= kMostCells / axis.choices(),
                      "nsn::Description: the axes make more than 2^40 sub-networks. Give fewer "
                      "choices.");
    size_ *= axis.choices();
  }
}

size_t Grid::cell(const std::vector<size_t>& choices) const {
  TORCH_CHECK_VALUE(!axes_.empty(), "nsn::Grid: there are no axes, and so no sub-networks.");
  TORCH_CHECK_VALUE(choices.size() == axes_.size(), "nsn::Grid: expected ", axes_.size(),
                    " choices, one for each axis, but got ", choices.size(), ".");
  size_t cell = 0;
  for (const size_t i : c10::irange(axes_.size())) {
    TORCH_CHECK_VALUE(choices[i] < axes_[i].choices(), "nsn::Grid: axis '", axes_[i].name,
                      "' has the choices 0 to ", axes_[i].choices() - 1, ", but got ", choices[i],
                      ".");
    cell = cell * axes_[i].choices() + choices[i];
  }
  return cell;
}

std::vector<size_t> Grid::choices(size_t cell) const {
  TORCH_CHECK_VALUE(cell < size_, "nsn::Grid: there is no cell ", cell, "; there are ", size_, ".");
  std::vector<size_t> result(axes_.size());
  for (size_t i = axes_.size(); i-- > 0;) {
    result[i] = cell % axes_[i].choices();
    cell /= axes_[i].choices();
  }
  return result;
}

std::string Grid::name(size_t cell) const {
  const auto choices = this->choices(cell);
  std::string result;
  for (const size_t i : c10::irange(axes_.size())) {
    result += (i > 0 ? "_" : "") + axes_[i].name + std::to_string(choices[i]);
  }
  return result;
}

std::optional<size_t> Grid::find(const std::string& name) const {
  constexpr size_t kMostDigits = 4;  // of kMostChoices
  size_t at = 0;
  std::vector<size_t> choices;
  for (const GridAxis& axis : axes_) {
    const std::string front = (choices.empty() ? "" : "_") + axis.name;
    if (name.compare(at, front.size(), front) != 0) return std::nullopt;
    at += front.size();
    size_t digits = 0, choice = 0;
    for (; at < name.size() && std::isdigit(static_cast<unsigned char>(name[at])) != 0; ++at) {
      if (++digits > kMostDigits) return std::nullopt;
      choice = choice * 10 + static_cast<size_t>(name[at] - '0');
    }
    const bool is_plain = digits == 1 || (digits > 1 && name[at - digits] != '0');
    if (!is_plain || choice >= axis.choices()) return std::nullopt;
    choices.push_back(choice);
  }
  if (axes_.empty() || at != name.size()) return std::nullopt;
  return cell(choices);
}

SubnetworkOptions Grid::options(size_t cell, const SubnetworkOptions& base) const {
  const auto choices = this->choices(cell);
  std::set<std::string> dropped;
  for (const size_t i : c10::irange(axes_.size())) {
    const auto* depths = std::get_if<Depths>(&axes_[i].range);
    if (depths == nullptr) continue;
    const size_t count = depths->drops.size() - choices[i];
    dropped.insert(depths->drops.begin(),
                   depths->drops.begin() + static_cast<std::ptrdiff_t>(count));
  }
  std::vector<std::string> kept;
  for (const std::string& block : base.blocks()) {
    if (dropped.count(block) == 0) kept.push_back(block);
  }
  SubnetworkOptions result(std::move(kept));
  for (const auto& [block, probability] : base.dropout()) {
    if (dropped.count(block) == 0) result.dropout(block, probability);
  }
  for (const size_t i : c10::irange(axes_.size())) {
    const auto* widths = std::get_if<Widths>(&axes_[i].range);
    if (widths == nullptr) continue;
    for (const std::string& target : widths->of) {
      const std::string block = block_of(target);
      if (dropped.count(block) > 0) continue;
      const std::string dimension =
          target.size() > block.size() ? target.substr(block.size() + 1) : "";
      result.width(block, dimension, widths->widths[choices[i]]);
    }
  }
  return result;
}

}  // namespace nsn
