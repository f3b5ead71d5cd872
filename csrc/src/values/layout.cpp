#include "nsn/values/layout.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <sstream>

#include "values/borders.h"

namespace nsn {

Axis::Axis(const std::vector<Factor>& factors) {
  for (const Factor& factor : factors) {
    if (factor.full == 1 && !factors_.empty()) continue;
    // All of what comes next is kept (or there is one thing only), so that the kept lie together.
    const bool joins =
        !factors_.empty() && (factor.full == factor.kept || factors_.back().full == 1);
    if (joins) {
      factors_.back().full *= factor.full;
      factors_.back().kept *= factor.kept;
    } else {
      factors_.push_back(factor);
    }
  }
}

int64_t Axis::full() const noexcept {
  int64_t product = 1;
  for (const Factor& factor : factors_) product *= factor.full;
  return product;
}

int64_t Axis::kept() const noexcept {
  int64_t product = 1;
  for (const Factor& factor : factors_) product *= factor.kept;
  return product;
}

Layout whole(const Shape& shape) { return {shape.begin(), shape.end()}; }

Shape full_shape(const Layout& layout) {
  Shape shape;
  for (const Axis& axis : layout) shape.push_back(axis.full());
  return shape;
}

Shape kept_shape(const Layout& layout) {
  Shape shape;
  for (const Axis& axis : layout) shape.push_back(axis.kept());
  return shape;
}

std::optional<SliceView> common_view(const std::vector<const Layout*>& layouts) {
  detail::Borders borders;
  for (const Layout* layout : layouts) borders.add(*layout);
  SliceView result;
  result.slices.resize(layouts.size());
  for (const size_t dim : c10::irange(layouts[0]->size())) {
    for (const size_t i : c10::irange(layouts.size())) {
      const auto factors = borders.part((*layouts[i])[dim], dim);
      if (!factors) return std::nullopt;
      for (const Axis::Factor& factor : *factors) {
        if (i == 0) result.view.push_back(factor.full);
        result.slices[i].push_back(factor.kept);
      }
    }
  }
  return result;
}

int64_t checked_numel(const Shape& shape, const std::string& what) {
  constexpr int64_t kMost = int64_t{1} << 60;
  int64_t numel = 1;
  for (const int64_t extent : shape) {
    TORCH_CHECK_VALUE(extent >= 1, "nsn: ", what, " must be at least 1, but got ", extent,
                      ". Give a positive size.");
    TORCH_CHECK_VALUE(extent <= kMost / numel, "nsn: ", what, " of shape ", to_string(shape),
                      " has more than 2^60 elements. Make it smaller.");
    numel *= extent;
  }
  return numel;
}

std::string to_string(const Shape& shape) {
  std::ostringstream stream;
  stream << '(';
  for (const size_t i : c10::irange(shape.size())) stream << (i > 0 ? ", " : "") << shape[i];
  stream << ')';
  return stream.str();
}

std::string to_string(const Layout& layout) {
  std::ostringstream stream;
  stream << '(';
  for (const size_t i : c10::irange(layout.size())) {
    if (i > 0) stream << ", ";
    const auto& factors = layout[i].factors();
    for (const size_t f : c10::irange(factors.size())) {
      if (f + 1 < factors.size()) {
        stream << "each of " << factors[f].kept;
        if (factors[f].kept != factors[f].full) stream << " of " << factors[f].full;
        stream << ": ";
      } else {
        stream << factors[f].kept;
        if (factors[f].kept != factors[f].full) stream << " of " << factors[f].full;
      }
    }
  }
  stream << ')';
  return stream.str();
}

}  // namespace nsn
