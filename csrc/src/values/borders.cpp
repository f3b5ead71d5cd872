#include "values/borders.h"

#include <c10/util/irange.h>

#include <algorithm>
#include <functional>

namespace nsn::detail {

namespace {

/// How many elements lie behind each border between factors: {3, 4, 5} has its borders at 20 and 5.
std::vector<int64_t> borders(const Axis& axis) {
  std::vector<int64_t> result;
  int64_t behind = 1;
  for (size_t i = axis.factors().size(); i-- > 1;) {
    behind *= axis.factors()[i].full;
    result.push_back(behind);
  }
  return result;
}

/// The axis' factors with these borders (largest first, each a multiple of the next) between them.
std::optional<std::vector<Axis::Factor>> split(const Axis& axis,
                                               const std::vector<int64_t>& borders) {
  std::vector<Axis::Factor> result;
  int64_t behind = axis.full();
  for (const Axis::Factor& factor : axis.factors()) {
    Axis::Factor rest = factor;
    const int64_t end = behind / factor.full;  // what lies behind this factor
    for (const int64_t border : borders) {
      if (border >= behind || border <= end) continue;
      const int64_t inner = border / end;
      if (rest.full % inner != 0) return std::nullopt;
      if (rest.kept % inner == 0) {
        result.push_back({rest.full / inner, rest.kept / inner});
        rest = {inner, inner};
      } else if (rest.kept < inner) {
        result.push_back({rest.full / inner, 1});
        rest = {inner, rest.kept};
      } else {
        return std::nullopt;
      }
    }
    result.push_back(rest);
    behind = end;
  }
  return result;
}

}  // namespace

void Borders::add(const Layout& layout) {
  borders_.resize(layout.size());
  for (const size_t dim : c10::irange(layout.size())) {
    auto& all = borders_[dim];
    const auto own = borders(layout[dim]);
    all.insert(all.end(), own.begin(), own.end());
    std::sort(all.begin(), all.end(), std::greater<>());
    all.erase(std::unique(all.begin(), all.end()), all.end());
  }
}

bool Borders::fit(const Layout& layout) const {
  for (const size_t dim : c10::irange(layout.size())) {
    const auto own = borders(layout[dim]);
    const bool is_known = std::all_of(own.begin(), own.end(), [&](int64_t border) {
      return std::find(borders_[dim].begin(), borders_[dim].end(), border) != borders_[dim].end();
    });
    if (!is_known || !part(layout[dim], dim)) return false;
  }
  return true;
}

std::optional<std::vector<Axis::Factor>> Borders::part(const Axis& axis, size_t dim) const {
  return split(axis, borders_[dim]);
}

}  // namespace nsn::detail
