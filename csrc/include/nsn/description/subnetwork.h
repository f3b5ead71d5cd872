#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/visibility.h>

namespace nsn {

/// How much of a dimension a sub-network keeps: a count, or a fraction of what there is, which
/// means the nearest count (halves upwards), at least one step.
class NSN_API Width {
 public:
  Width(int count) : value_(int64_t{count}) {}  // NOLINT(google-explicit-constructor)
  Width(int64_t count) : value_(count) {}       // NOLINT(google-explicit-constructor)
  Width(double fraction) : value_(fraction) {}  // NOLINT(google-explicit-constructor)

  const std::variant<int64_t, double>& value() const noexcept { return value_; }

  /// The count that it means; throws c10::ValueError, naming `what`, where it does not fit.
  int64_t of(const Dimension& dimension, const std::string& what) const;

 private:
  std::variant<int64_t, double> value_;
};

/// Options for a sub-network: the blocks that it keeps, in order, and how it keeps them.
///
///     SubnetworkOptions({"hidden1", "hidden2", "output"})
///         .width("hidden1", 0.5)
///         .dropout("hidden2", 0.2)
///
/// or, of all blocks and as narrow as they can be kept:
///
///     SubnetworkOptions().width(0.5)
class NSN_API SubnetworkOptions {
 public:
  /// In the place of a block's name: all blocks.
  static constexpr const char* kAll = "*";

  /// Keeps all blocks of the network.
  SubnetworkOptions() : keeps_all_(true) {}
  SubnetworkOptions(std::vector<std::string> blocks)  // NOLINT(google-explicit-constructor)
      : blocks_(std::move(blocks)) {}

  /// This sub-network's dropout probability in `block`, in place of the block's own.
  SubnetworkOptions& dropout(std::string block, double probability) {
    dropout_.emplace_back(std::move(block), probability);
    return *this;
  }

  /// How much it keeps of all dimensions of its blocks that have no width of their own: a fraction.
  /// What cannot be narrowed stays whole, and so does what the shape of its output depends on.
  SubnetworkOptions& width(Width fraction) { return width(kAll, fraction); }

  /// How much it keeps of the one dimension that `block` has, or of one of several. Where that
  /// would change the shape of its output, the dimension must be named.
  SubnetworkOptions& width(std::string block, Width width) {
    return this->width(std::move(block), "", width);
  }
  SubnetworkOptions& width(std::string block, std::string dimension, Width width) {
    widths_.push_back({std::move(block), std::move(dimension), width});
    return *this;
  }

  struct BlockWidth {
    std::string block, dimension;  // no dimension: the only one; an inner block: its only one
    Width width;
  };
  /// Those that were named. A Description names them all where none was.
  const std::vector<std::string>& blocks() const noexcept { return blocks_; }
  const std::vector<std::pair<std::string, double>>& dropout() const noexcept { return dropout_; }
  const std::vector<BlockWidth>& widths() const noexcept { return widths_; }

 private:
  friend class Description;
  bool keeps_all_ = false;
  std::vector<std::string> blocks_;
  std::vector<std::pair<std::string, double>> dropout_;
  std::vector<BlockWidth> widths_;
};

}  // namespace nsn
