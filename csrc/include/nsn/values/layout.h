#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nsn/visibility.h>

// How much of a tensor a lane keeps. Activations and parameters are described alike: by one Axis a
// dimension.

namespace nsn {

/// Extents of a tensor; of a sample, without the batch dimension.
using Shape = std::vector<int64_t>;

/// One dimension of a tensor and the part of it that a lane keeps: the leading one, or, where the
/// dimension holds several things one behind the other, the leading part of each. A weight whose
/// rows are those of Q, K and V, of 4 heads each, keeps 2 heads as {{3, 3}, {4 * d, 2 * d}}.
class NSN_API Axis {
 public:
  /// So many things one behind the other, and so many of them kept; slowest first.
  struct Factor {
    int64_t full, kept;
    friend bool operator==(const Factor&, const Factor&) = default;
  };

  /// A whole dimension.
  Axis(int64_t extent) : Axis(extent, extent) {}  // NOLINT(google-explicit-constructor)

  /// The leading `kept` of `full`.
  Axis(int64_t full, int64_t kept) : factors_{{full, kept}} {}

  /// The leading part of each; brought to the fewest factors that say the same.
  explicit Axis(const std::vector<Factor>& factors);

  int64_t full() const noexcept;
  int64_t kept() const noexcept;
  bool is_whole() const noexcept { return factors_.size() == 1 && full() == kept(); }

  /// Whether what is kept lies together, at the front.
  bool is_leading() const noexcept { return factors_.size() == 1; }

  /// At least one.
  const std::vector<Factor>& factors() const noexcept { return factors_; }

  friend bool operator==(const Axis&, const Axis&) = default;

 private:
  std::vector<Factor> factors_;
};

/// One axis for each dimension.
using Layout = std::vector<Axis>;

/// A layout that keeps all.
NSN_API Layout whole(const Shape& shape);

/// The extents at full width, and those kept.
NSN_API Shape full_shape(const Layout& layout);
NSN_API Shape kept_shape(const Layout& layout);

/// Slices of one tensor in a view of it that makes each of them leading: `tensor.view(view)`, and
/// for each slice one extent a dimension of the view.
struct SliceView {
  Shape view;
  std::vector<Shape> slices;
};

/// The view that serves all of `layouts` (of one full shape); nothing where there is none, such as
/// for the leading 3 of 2 x 2 beside the leading part of each.
NSN_API std::optional<SliceView> common_view(const std::vector<const Layout*>& layouts);

/// The product of the extents; throws c10::ValueError, naming `what`, where one is below 1 or where
/// the product is above 2^60.
NSN_API int64_t checked_numel(const Shape& shape, const std::string& what);

/// "(784)", "(3, 28, 28)".
NSN_API std::string to_string(const Shape& shape);

/// "(392 of 784, 28)"; "each of 2: 8 of 16" where parts of several things are kept.
NSN_API std::string to_string(const Layout& layout);

}  // namespace nsn
