#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <nsn/description/subnetwork.h>
#include <nsn/visibility.h>

// Sub-networks by ranges: many that are not listed one by one.
//
//     NetworkOptions()
//         ...
//         .axis("w", Widths{{0.25, 0.5, 0.75, 1.0}})
//         .axis("d", Depths{{"block3", "block2"}})
//
// describes 4 x 3 of them. Each is named by its choices, counted from the smallest: "w0_d0" is the
// narrowest and shallowest, "w3_d2" the same as base.

namespace nsn {

/// A width for each choice, from the narrowest to the widest.
struct Widths {
  std::vector<Width> widths;
  /// What has it: blocks ("conv1"), dimensions of blocks ("block1.heads"), or "*", all blocks.
  std::vector<std::string> of{SubnetworkOptions::kAll};
};

/// Blocks that may be left out, the first named first: with one more of them for each choice.
struct Depths {
  std::vector<std::string> drops;
};

struct NSN_API GridAxis {
  std::string name;
  std::variant<Widths, Depths> range;

  size_t choices() const;
};

/// All combinations of one choice of each axis: cells, which are narrower and shallower bases. They
/// are no parameters' owners: a block that base keeps and that has `per_subnetwork` is refused.
class NSN_API Grid {
 public:
  Grid() = default;
  /// Throws c10::ValueError where an axis has no name or no choices, or there are too many cells.
  explicit Grid(std::vector<GridAxis> axes);

  const std::vector<GridAxis>& axes() const noexcept { return axes_; }
  /// How many cells; the first is the smallest, the last the largest. 0 without axes.
  size_t size() const noexcept { return size_; }

  /// The cell of a choice for each axis, in order. Throws c10::ValueError where there is none.
  size_t cell(const std::vector<size_t>& choices) const;
  std::vector<size_t> choices(size_t cell) const;

  /// "w0_d2".
  std::string name(size_t cell) const;
  /// The cell of a name; none where it is no cell's.
  std::optional<size_t> find(const std::string& name) const;

  /// What a cell keeps of `base`.
  SubnetworkOptions options(size_t cell, const SubnetworkOptions& base) const;

 private:
  std::vector<GridAxis> axes_;
  size_t size_ = 0;
};

}  // namespace nsn
