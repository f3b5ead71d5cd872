#include "nsn/blocks/composite.h"

#include <ATen/TensorOperators.h>

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <ostream>
#include <set>
#include <unordered_map>
#include <utility>

#include "blocks/builtin.h"
#include "blocks/options.h"
#include "blocks/slices.h"
#include "blocks/support.h"
#include "kernels/mix.h"
#include "nsn/blocks/lowering.h"

namespace nsn {

// Found by the type of the options, which an unnamed namespace would prevent.
static void list_options(const SequenceOptions& options, const SequenceOptions& defaults,
                         detail::OptionVisitor& visitor) {
  static_cast<void>(defaults);
  visitor.required("blocks", options.blocks(), detail::doc::kBlocks);
}

static void list_options(const ResidualOptions& options, const ResidualOptions& defaults,
                         detail::OptionVisitor& visitor) {
  static_cast<void>(defaults);
  visitor.required("blocks", options.blocks(), detail::doc::kBlocks);
}

namespace {

template <typename Options>
Options with_blocks(std::vector<InnerBlock> blocks) {
  Options options;
  options.blocks() = std::move(blocks);
  return options;
}

}  // namespace

Composite::Composite(std::vector<InnerBlock> blocks, bool is_residual)
    : blocks_(std::move(blocks)), is_residual_(is_residual) {
  TORCH_CHECK_VALUE(!blocks_.empty(),
                    "nsn: a block made of blocks needs at least one. Add a block.");
  std::set<std::string> names;
  for (const size_t i : c10::irange(blocks_.size())) {
    const InnerBlock& inner = blocks_[i];
    TORCH_CHECK_VALUE(inner.block != nullptr, "nsn: inner block '", inner.name,
                      "' is null. Give its options.");
    TORCH_CHECK_VALUE(!inner.name.empty() && inner.name.find('.') == std::string::npos,
                      "nsn: an inner block's name must be made of letters, digits and '_', but is "
                      "'",
                      inner.name, "'. Rename it.");
    TORCH_CHECK_VALUE(names.insert(inner.name).second, "nsn: two inner blocks are named '",
                      inner.name, "'. Rename one.");
    TORCH_CHECK_VALUE(inner.block->module() == nullptr, "nsn: inner block '", inner.name,
                      "' wraps a module, which has to be a block of the network itself.");
    const auto parameters = inner.block->parameters();
    counts_.push_back(parameters.size());
    has_private_.push_back(detail::has_private_parts(parameters));
    for (const Dimension& dimension : inner.block->dimensions()) {
      if (is_residual_ && dimension.name == "out") follows_ = i;
    }
  }
}

std::vector<ParameterSpec> Composite::parameters() const {
  std::vector<ParameterSpec> result;
  for (const InnerBlock& inner : blocks_) {
    for (ParameterSpec& parameter : inner.block->parameters()) {
      parameter.name = inner.name + "." + parameter.name;
      result.push_back(std::move(parameter));
    }
  }
  return result;
}

std::vector<Dimension> Composite::dimensions() const {
  std::vector<Dimension> result;
  for (const size_t i : c10::irange(blocks_.size())) {
    for (Dimension& dimension : blocks_[i].block->dimensions()) {
      if (follows_ == i && dimension.name == "out") continue;
      dimension.name = blocks_[i].name + "." + dimension.name;
      dimension.axis.reset();
      result.push_back(std::move(dimension));
    }
  }
  return result;
}

Fit Composite::fit(const Signal& input, const BlockUse& use) const {
  Fit result{use, input, input, {}, 0, {}};
  std::unordered_map<std::string, std::map<std::string, int64_t>> widths;
  for (const auto& [dimension, count] : use.width) {
    const size_t point = dimension.find('.');
    if (point != std::string::npos) {
      widths[dimension.substr(0, point)][dimension.substr(point + 1)] = count;
    }
  }
  for (const size_t i : c10::irange(blocks_.size())) {
    const InnerBlock& inner = blocks_[i];
    BlockUse own;
    if (inner.takes_dropout && inner.block->dropout()) own.dropout = use.dropout;
    if (const auto found = widths.find(inner.name); found != widths.end()) {
      own.width = std::move(found->second);
    }
    if (follows_ == i) {
      for (const Dimension& dimension : inner.block->dimensions()) {
        if (dimension.name != "out" || !dimension.axis) continue;
        const auto rank = static_cast<int64_t>(input.layout.size());
        const int64_t axis = *dimension.axis < 0 ? *dimension.axis + rank : *dimension.axis;
        if (axis < 0 || axis >= rank) continue;
        const int64_t kept = input.layout[static_cast<size_t>(axis)].kept();
        // Too wide a block is refused below, where the shapes are compared.
        if (kept < dimension.full && kept % dimension.step == 0) own.width["out"] = kept;
      }
    }
    try {
      result.inner.push_back(detail::checked_fit(*inner.block, result.output, own));
    } catch (const Misfit& problem) {
      throw Misfit("has the inner block '" + inner.name + "' (" + inner.block->type() +
                   "), which " + problem.what());
    }
    const Fit& fit = result.inner.back();
    result.output = fit.output;
    result.flops = detail::saturating_add(result.flops, fit.flops);
    result.slices.insert(result.slices.end(), fit.slices.begin(), fit.slices.end());
  }
  if (!is_residual_) return result;
  // Feature has to meet feature: all of a block that is as narrow as its input may meet the input.
  const Layout& output = result.output.layout;
  bool meets = output.size() == input.layout.size();
  for (size_t i = 0; meets && i < output.size(); ++i) {
    meets = output[i] == input.layout[i] ||
            (output[i].is_whole() && output[i].kept() == input.layout[i].kept());
  }
  if (!meets) misfit("an input as its result, which is " + to_string(output), input);
  result.output = input;
  return result;
}

Lanes Composite::joint(Lanes inputs, const BlockPass& pass) const {
  const size_t count = inputs.size();
  // Those that meet the result again are held until then.
  Lanes activations = is_residual_ ? inputs : std::move(inputs);
  BlockPass inner_pass = pass;
  inner_pass.outer = &pass;
  inner_pass.memory.room = nullptr;
  for (LanePass& lane : inner_pass.lanes) lane.output_way = lane.input_way;
  for (const size_t i : c10::irange(blocks_.size())) {
    inner_pass.name = blocks_[i].name;
    inner_pass.seed = detail::mix(pass.seed, i);
    for (const size_t lane : c10::irange(count)) {
      LanePass& own = inner_pass.lanes[lane];
      own.fit = &pass.lanes[lane].fit->inner[i];
      own.input_way = own.output_way;
      own.output_way =
          detail::next_way(own.input_way, i, *own.fit, has_private_[i], own.subnetwork);
    }
    activations = blocks_[i].block->joint(std::move(activations), inner_pass);
    for (LanePass& lane : inner_pass.lanes) lane.parameters += counts_[i];
  }
  if (is_residual_) {
    for (const size_t lane : c10::irange(count)) {
      activations.set(lane, activations[lane] + inputs[lane]);
    }
  }
  return activations;
}

size_t Composite::lower(Lowering& to, size_t x) const {
  size_t y = x, first = 0;
  for (const size_t i : c10::irange(blocks_.size())) {
    y = to.inner(i, first, y);
    first += counts_[i];
  }
  return is_residual_ ? to.step("add", primitives::Add{}, {x, y}) : y;
}

std::optional<double> Composite::dropout() const {
  std::optional<double> largest;
  for (const InnerBlock& inner : blocks_) {
    const auto own = inner.takes_dropout ? inner.block->dropout() : std::nullopt;
    if (own) largest = std::max(*own, largest.value_or(0.0));
  }
  return largest;
}

void Composite::check_rule(const merge::Rule& rule) const {
  for (const InnerBlock& inner : blocks_) inner.block->check_rule(rule);
}

void Composite::initialize(at::TensorList parameters) const {
  size_t first = 0;
  for (const size_t i : c10::irange(blocks_.size())) {
    blocks_[i].block->initialize(parameters.slice(first, counts_[i]));
    first += counts_[i];
  }
}

std::vector<InnerBlock> Composite::narrowed_inner(const Fit& fit) const {
  std::vector<InnerBlock> result;
  for (const size_t i : c10::irange(blocks_.size())) {
    const BlockPtr narrowed = blocks_[i].block->narrowed(fit.inner[i]);
    result.push_back(
        {blocks_[i].name, narrowed ? narrowed : blocks_[i].block, blocks_[i].takes_dropout});
  }
  return result;
}

// -------------------------------------------------------------------------------------------------

SequenceOptions::operator BlockPtr() const { return std::make_shared<const Sequence>(*this); }

Sequence::Sequence(SequenceOptions options)
    : Composite(options.blocks(), /*is_residual=*/false), options_(std::move(options)) {}

std::string Sequence::options_json() const { return detail::write_options(options_, options_); }

BlockPtr Sequence::narrowed(const Fit& fit) const {
  return with_blocks<SequenceOptions>(narrowed_inner(fit));
}

void Sequence::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, options_);
}

ResidualOptions::operator BlockPtr() const { return std::make_shared<const Residual>(*this); }

Residual::Residual(ResidualOptions options)
    : Composite(options.blocks(), /*is_residual=*/true), options_(std::move(options)) {}

std::string Residual::options_json() const { return detail::write_options(options_, options_); }

BlockPtr Residual::narrowed(const Fit& fit) const {
  return with_blocks<ResidualOptions>(narrowed_inner(fit));
}

void Residual::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, options_);
}

namespace detail {

BlockType block_type_Sequence() { return block_type("Sequence", SequenceOptions()); }
BlockType block_type_Residual() { return block_type("Residual", ResidualOptions()); }

}  // namespace detail
}  // namespace nsn
