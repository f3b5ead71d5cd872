#include "description/subnetworks.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <unordered_set>
#include <utility>

#include "description/widths.h"
#include "values/counts.h"

namespace nsn {

namespace {

/// At the end of each message about a width.
constexpr const char* kWidths =
    "A whole number is a count (1 keeps one), a number with a point a fraction (1.0 keeps all).";

}  // namespace

int64_t Width::of(const Dimension& dimension, const std::string& what) const {
  if (const auto* count = std::get_if<int64_t>(&value_)) {
    TORCH_CHECK_VALUE(*count >= 1 && *count <= dimension.full, what, " must be from 1 to ",
                      dimension.full, ", but got ", *count,
                      ". Give a count in that range, or a fraction such as 0.5. ", kWidths);
    TORCH_CHECK_VALUE(*count % dimension.step == 0, what, " must be a multiple of ", dimension.step,
                      ", its groups, but got ", *count, ". Give a multiple, or a fraction. ",
                      kWidths);
    return *count;
  }
  const double fraction = std::get<double>(value_);
  TORCH_CHECK_VALUE(fraction > 0.0 && fraction <= 1.0, what,
                    " must be a fraction above 0 and up to 1, but got ", fraction, ". ", kWidths);
  const auto steps = static_cast<double>(dimension.full / dimension.step);
  return dimension.step *
         std::max<int64_t>(1, static_cast<int64_t>(std::floor(fraction * steps + 0.5)));
}

namespace detail {

namespace {

/// A block and those inside it.
size_t count_blocks(const Block& block) {
  size_t count = 1;
  for (const InnerBlock& inner : block.inner()) count += count_blocks(*inner.block);
  return count;
}

/// Refuses blocks that do not fit, and widths that name no dimension and change the output; moves
/// the others into `use`. Returns how the blocks fit then.
std::vector<Fit> settle_widths(const std::string& prefix, const std::vector<std::string>& names,
                               std::vector<KeptBlock>& kept, const Signal& input,
                               at::ScalarType dtype) {
  auto narrowed = kept;
  bool has_unnamed = false;
  for (KeptBlock& block : narrowed) {
    has_unnamed = has_unnamed || !block.unnamed.empty();
    for (const auto& [dimension, count] : block.unnamed) block.use.width[dimension] = count;
    block.unnamed.clear();
  }
  std::vector<Fit> fits, without;
  try {
    fit_row(narrowed, input, fits);
  } catch (const Misfit& problem) {
    const size_t i = fits.size();
    const std::string source = i == 0 ? "the network's input" : "block '" + names[i - 1] + "'";
    TORCH_CHECK_VALUE(false, prefix, ": block '", names[i], "' (", kept[i].block->type(), ") ",
                      problem.what(), " from ", source, i == 0 ? ", of dtype " : "",
                      i == 0 ? c10::toString(dtype) : "", ". Change the options of '", names[i],
                      "' or of ", source,
                      ", or keep a block between them that makes the one shape of the other.");
  }
  if (!has_unnamed) return fits;
  try {
    fit_row(kept, input, without);
  } catch (const Misfit&) {
    // The blocks fit only as narrow as this, so that there is no other output.
    kept = std::move(narrowed);
    return fits;
  }
  const Shape output = kept_shape(fits.back().output.layout);
  const Shape whole = kept_shape(without.back().output.layout);
  if (output != whole) {
    const auto widened = narrow(kept, input);
    const auto& [place, dimension] = widened.front();
    const std::string& block = names[place];
    TORCH_CHECK_VALUE(false, prefix, ": the width of block '", block,
                      "' would change the sub-network's output from ", to_string(whole), " to ",
                      to_string(output),
                      ". Leave it out; or, where that is what you want, name the dimension: {'",
                      block, "': {'", dimension, "': ...}}. ", kWidths);
  }
  kept = std::move(narrowed);
  return fits;
}

/// Makes a sub-network step by step.
class SubnetworkMaker {
 public:
  SubnetworkMaker(const std::string& name, const SubnetworkOptions& options,
                  const std::vector<Description::NamedBlock>& blocks, const BlockLookup& lookup)
      : options_(options),
        blocks_(blocks),
        lookup_(lookup),
        prefix_("nsn::Description: sub-network '" + name + "'"),
        result_{name, options, {}, {}, {}, {}, {}, {}, 0, 0} {}

  Description::Subnetwork make(const Signal& input, at::ScalarType dtype) {
    keep_blocks();
    set_dropout();
    set_widths();
    result_.fits = settle_widths(prefix_, options_.blocks(), kept_, input, dtype);
    if (of_all_) narrow_all(input);
    for (const Fit& fit : result_.fits) result_.flops = saturating_add(result_.flops, fit.flops);
    result_.output = kept_shape(result_.fits.back().output.layout);
    return std::move(result_);
  }

 private:
  void keep_blocks();
  void set_dropout();
  void set_widths();
  void narrow_all(const Signal& input);

  /// Where it keeps a block for which it `sets` something.
  size_t kept_place(const std::string& block_name, const char* sets) const;

  const SubnetworkOptions& options_;
  const std::vector<Description::NamedBlock>& blocks_;
  const BlockLookup& lookup_;
  std::string prefix_;
  Description::Subnetwork result_;
  /// Of each block that it keeps, what is asked of it.
  std::vector<KeptBlock> kept_;
  /// The widths that were named, "block.dimension", and that of all others.
  std::unordered_set<std::string> set_;
  std::optional<Width> of_all_;
};

void SubnetworkMaker::keep_blocks() {
  TORCH_CHECK_VALUE(!options_.blocks().empty(), "nsn::Description: sub-network '", result_.name,
                    "' keeps no block. Name at least one, or remove the sub-network.");
  for (const std::string& block_name : options_.blocks()) {
    const auto found = lookup_.places.find(block_name);
    if (found == lookup_.places.end()) {
      std::vector<std::string> all;
      for (const auto& block : blocks_) all.push_back(block.name);
      TORCH_CHECK_VALUE(false, "nsn::Description: sub-network '", result_.name,
                        "' names a block that does not exist: '", block_name, "'. The blocks are ",
                        quoted(all), ".");
    }
    const size_t place = found->second;
    TORCH_CHECK_VALUE(result_.blocks.empty() || result_.blocks.back() < place,
                      "nsn::Description: sub-network '", result_.name, "' keeps block '",
                      block_name, "' after '", blocks_[result_.blocks.back()].name,
                      "', but blocks are kept in the order of the network, each once. List '",
                      block_name, "' where the network has it.");
    result_.blocks.push_back(place);
  }
  for (const size_t block : result_.blocks) kept_.push_back({blocks_[block].block.get(), {}, {}});
}

size_t SubnetworkMaker::kept_place(const std::string& block_name, const char* sets) const {
  const auto found = lookup_.places.find(block_name);
  const auto kept =
      found == lookup_.places.end() ? std::nullopt : position(result_.blocks, found->second);
  TORCH_CHECK_VALUE(kept, prefix_, " sets a ", sets, " for block '", block_name,
                    "', which it does not keep. It keeps ", quoted(options_.blocks()), ".");
  return *kept;
}

void SubnetworkMaker::set_dropout() {
  for (const auto& [block_name, probability] : options_.dropout()) {
    const size_t kept = kept_place(block_name, "dropout");
    const Block& block = *blocks_[result_.blocks[kept]].block;
    TORCH_CHECK_VALUE(block.dropout().has_value(), prefix_, " sets a dropout for block '",
                      block_name, "', but a ", block.type(), " has none. Remove it.");
    TORCH_CHECK_VALUE(probability >= 0.0 && probability <= 1.0, prefix_, ": the dropout of block '",
                      block_name, "' must be a probability from 0 to 1, but got ", probability,
                      ".");
    TORCH_CHECK_VALUE(!kept_[kept].use.dropout, prefix_, " sets the dropout of block '", block_name,
                      "' twice. Set it once.");
    kept_[kept].use.dropout = probability;
  }
}

void SubnetworkMaker::set_widths() {
  for (const auto& [block_name, dimension_name, width] : options_.widths()) {
    if (block_name == SubnetworkOptions::kAll) {
      TORCH_CHECK_VALUE(dimension_name.empty(), prefix_, " sets a width for '", dimension_name,
                        "' of all blocks, but '*' stands for all of their dimensions. Name the "
                        "blocks.");
      TORCH_CHECK_VALUE(!of_all_, prefix_, " sets the width of all blocks twice. Set it once.");
      of_all_ = width;
      continue;
    }
    const size_t kept = kept_place(block_name, "width");
    const Block& block = *blocks_[result_.blocks[kept]].block;
    const auto& own = lookup_.dimensions[result_.blocks[kept]];
    TORCH_CHECK_VALUE(!own.names.empty(), prefix_, " sets a width for block '", block_name,
                      "', but a ", block.type(), " has none of its own. Remove it.");
    const Dimension* dimension = own.find(dimension_name);
    TORCH_CHECK_VALUE(dimension != nullptr || !dimension_name.empty(), prefix_,
                      " sets one width for block '", block_name,
                      "', which has several dimensions: ", quoted(own.names), ". Name them. ",
                      kWidths);
    TORCH_CHECK_VALUE(dimension != nullptr, prefix_, ": block '", block_name,
                      "' has no dimension '", dimension_name,
                      "', or several in it. Its dimensions "
                      "are ",
                      quoted(own.names), ". ", kWidths);
    const std::string what =
        prefix_ + ": the width '" + dimension->name + "' of block '" + block_name + "'";
    TORCH_CHECK_VALUE(set_.insert(block_name + "." + dimension->name).second, what,
                      " is set twice. Set it once.");
    const int64_t count = width.of(*dimension, what);
    TORCH_CHECK_VALUE(result_.name != kBase || count == dimension->full, what,
                      " is narrowed, but base is at full width. Make the block itself narrower, or "
                      "rename the sub-network. ",
                      kWidths);
    if (count == dimension->full) continue;
    if (dimension_name == dimension->name) {
      kept_[kept].use.width[dimension->name] = count;
    } else {
      kept_[kept].unnamed.emplace_back(dimension->name, count);
    }
  }
}

/// As narrow as all can be kept, but for what was named.
void SubnetworkMaker::narrow_all(const Signal& input) {
  const auto* fraction = std::get_if<double>(&of_all_->value());
  TORCH_CHECK_VALUE(fraction != nullptr && *fraction > 0.0 && *fraction <= 1.0, prefix_,
                    ": the width of all blocks must be a fraction above 0 and up to 1, but got ",
                    std::visit([](auto value) { return c10::str(value); }, of_all_->value()),
                    ". Give one such as 0.5, and counts to single blocks. ", kWidths);
  TORCH_CHECK_VALUE(result_.name != kBase || *fraction == 1.0, prefix_,
                    " is narrowed, but base is at full width. Rename the sub-network. ", kWidths);
  for (const size_t i : c10::irange(kept_.size())) {
    const auto& own = lookup_.dimensions[result_.blocks[i]];
    for (const std::string& each : own.names) {
      const Dimension& dimension = own.by_name.at(each);
      const int64_t count = of_all_->of(dimension, prefix_);
      if (count == dimension.full || set_.count(blocks_[result_.blocks[i]].name + "." + each) > 0) {
        continue;
      }
      kept_[i].unnamed.emplace_back(each, count);
    }
  }
  narrow(kept_, input);
  result_.fits.clear();
  fit_row(kept_, input, result_.fits);
}

}  // namespace

std::optional<size_t> position(const std::vector<size_t>& kept, size_t block) {
  const auto found = std::lower_bound(kept.begin(), kept.end(), block);
  if (found == kept.end() || *found != block) return std::nullopt;
  return static_cast<size_t>(found - kept.begin());
}

std::string quoted(const std::vector<std::string>& names) {
  constexpr size_t kMost = 20;
  std::string result;
  for (const size_t i : c10::irange(std::min(names.size(), kMost))) {
    result += (i > 0 ? ", '" : "'") + names[i] + "'";
  }
  return names.size() > kMost ? result + ", ..." : result;
}

std::string names_in(const Description& description) {
  const Grid& grid = description.grid();
  const std::string listed = quoted(description.names());
  if (grid.size() == 0) return listed;
  return listed + ", and those of the grid '" + grid.name(0) + "' to '" +
         grid.name(grid.size() - 1) + "'";
}

BlockLookup::BlockLookup(const std::vector<Description::NamedBlock>& blocks) {
  for (const Description::NamedBlock& block : blocks) {
    places.emplace(block.name, places.size());
    counts.push_back(count_blocks(*block.block));
    Dimensions& own = dimensions.emplace_back();
    for (Dimension& dimension : block.block->dimensions()) {
      own.names.push_back(dimension.name);
      own.by_name.emplace(dimension.name, std::move(dimension));
    }
  }
}

const Dimension* BlockLookup::Dimensions::find(const std::string& name) const {
  if (const auto found = by_name.find(name); found != by_name.end()) return &found->second;
  const Dimension* result = nullptr;
  for (const std::string& each : names) {
    if (!name.empty() && !each.starts_with(name + ".")) continue;
    if (result != nullptr) return nullptr;
    result = &by_name.at(each);
  }
  return result;
}

Description::Subnetwork make_subnetwork(const std::string& name, const SubnetworkOptions& options,
                                        const std::vector<Description::NamedBlock>& blocks,
                                        const BlockLookup& lookup, const Shape& input,
                                        at::ScalarType dtype) {
  return SubnetworkMaker(name, options, blocks, lookup)
      .make({whole(input), !at::isFloatingType(dtype)}, dtype);
}

}  // namespace detail
}  // namespace nsn
