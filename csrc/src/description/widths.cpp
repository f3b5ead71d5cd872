#include "description/widths.h"

#include <c10/util/irange.h>

#include <algorithm>

#include "blocks/support.h"

namespace nsn::detail {

namespace {

bool is_same(const Fit& a, const Fit& b) {
  return kept_shape(a.output.layout) == kept_shape(b.output.layout);
}

/// A row of blocks that is narrowed as far as its output allows. Each block is met a few times,
/// however long the row is.
class Narrowing {
 public:
  Narrowing(std::vector<KeptBlock>& blocks, const Signal& input) : blocks_(blocks), input_(input) {
    fit_row(blocks_, input_, full_);
    for (KeptBlock& block : blocks_) {
      for (const auto& [dimension, count] : block.unnamed) block.use.width[dimension] = count;
    }
    fits_ = full_;
  }

  std::vector<std::pair<size_t, std::string>> run() {
    for (size_t i = 0; i < blocks_.size();) {
      if (fit(i)) {
        ++i;
      } else {
        // Nothing narrower than the whole will do for this block.
        const size_t before = widened_.size();
        i = i == 0 ? 0 : widen_output_of(i - 1);
        if (widened_.size() == before) return widen_all();
      }
    }
    if (!is_same(fits_.back(), full_.back())) {
      bool all_fit = true;
      for (size_t i = widen_output_of(blocks_.size() - 1); i < blocks_.size(); ++i) {
        all_fit = all_fit && fit(i);
      }
      // Only a block of one's own, whose fits do not agree with each other, comes here.
      if (!all_fit || !is_same(fits_.back(), full_.back())) return widen_all();
    }
    return std::move(widened_);
  }

 private:
  const Signal& input_of(size_t i) const { return i == 0 ? input_ : fits_[i - 1].output; }

  std::optional<Fit> tried(size_t i, const Signal& input) const {
    try {
      return checked_fit(*blocks_[i].block, input, blocks_[i].use);
    } catch (const Misfit&) {
      return std::nullopt;
    }
  }

  /// Fits a block behind the one before, with its own widths or else without them.
  bool fit(size_t i) {
    auto found = tried(i, input_of(i));
    if (!found && !blocks_[i].unnamed.empty()) {
      while (!blocks_[i].unnamed.empty()) widen(i, 0);
      found = tried(i, input_of(i));
    }
    if (found) fits_[i] = *std::move(found);
    return found.has_value();
  }

  void widen(size_t i, size_t place) {
    KeptBlock& block = blocks_[i];
    const std::string dimension = block.unnamed[place].first;
    block.use.width.erase(dimension);
    block.unnamed.erase(block.unnamed.begin() + static_cast<int64_t>(place));
    widened_.emplace_back(i, dimension);
  }

  std::vector<std::pair<size_t, std::string>> widen_all() {
    for (const size_t i : c10::irange(blocks_.size())) {
      while (!blocks_[i].unnamed.empty()) widen(i, 0);
    }
    return std::move(widened_);
  }

  /// Takes back the widths on which the output of block `last` depends; returns the first block
  /// that is to be fitted anew.
  size_t widen_output_of(size_t last) {
    for (size_t i = last;; --i) {
      const Signal& whole = i == 0 ? input_ : full_[i - 1].output;
      for (size_t place = blocks_[i].unnamed.size(); place-- > 0;) {
        const std::string dimension = blocks_[i].unnamed[place].first;
        const auto narrow = tried(i, whole);
        const int64_t count = blocks_[i].use.width.at(dimension);
        blocks_[i].use.width.erase(dimension);
        const auto wide = tried(i, whole);
        blocks_[i].use.width[dimension] = count;
        if (!narrow || !wide || !is_same(*narrow, *wide)) widen(i, place);
      }
      const auto found = tried(i, input_of(i));
      if (i == 0 || (found && is_same(*found, full_[i]))) return i;
    }
  }

  std::vector<KeptBlock>& blocks_;
  const Signal& input_;
  /// As it is without the widths, and as it is with those that are left.
  std::vector<Fit> full_, fits_;
  std::vector<std::pair<size_t, std::string>> widened_;
};

}  // namespace

void fit_row(const std::vector<KeptBlock>& blocks, Signal signal, std::vector<Fit>& fits) {
  for (const KeptBlock& kept : blocks) {
    fits.push_back(checked_fit(*kept.block, signal, kept.use));
    signal = fits.back().output;
  }
}

std::vector<std::pair<size_t, std::string>> narrow(std::vector<KeptBlock>& blocks,
                                                   const Signal& input) {
  return Narrowing(blocks, input).run();
}

}  // namespace nsn::detail
