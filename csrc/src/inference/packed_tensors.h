#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "inference/packed_weight.h"
#include "nsn/inference/pack.h"
#include "nsn/program/program.h"

namespace nsn::detail {

/// In which form a pack holds a tensor: panels for products and convolutions; taps, inputs, outputs
/// for convolutions in groups (whose weight has outputs first) and transposed ones (whose has
/// inputs first); norms, scales and shifts folded to one scale and shift; all else as it is, where
/// one copy serves all leading slices unless it has to be exact.
enum class PackedForm { kProduct, kConvolution, kTaps, kTapsTransposed, kFolded, kCopy, kExact };

/// What a step reads: the leading part of one of the pack's copies.
struct PackedSlice {
  /// The copy, by its place among all, and the part of it.
  size_t copy;
  Shape kept;
  /// The part, in panels or else as it is. `fill` sets it.
  at::Tensor plain = {};
  std::optional<kernels::Panels> panels = std::nullopt;
};

/// The tensors of a pack: one copy of each slice that its sub-networks need, in the form in which
/// they need it; leading slices of one parameter are served by one copy, of the widest. First all
/// sub-networks say what they will read, then `fill` copies, and from then on it is constant.
class PackedTensors {
 public:
  /// What `subnetwork` will read of an operand; the result stays where it is.
  const PackedSlice* read(const Operand& operand, PackedForm form, size_t subnetwork);

  /// The scale and the shift that norms, scales and shifts are, one after the other, behind a bias
  /// (or null), stacked: (2, features).
  const PackedSlice* read_folded(const Operand* bias, const std::vector<const Step*>& steps,
                                 size_t subnetwork);

  /// Has `then` called once the slices are there.
  void when_filled(std::function<void()> then) { then_.push_back(std::move(then)); }

  /// Copies from the table of all parameters.
  void fill(at::TensorList table);

  /// The parameter that a copy is of, by its place among all.
  size_t parameter(size_t copy) const { return copies_[copy].place; }
  /// Whether a copy is in panels.
  bool is_panels(size_t copy) const;
  /// What a copy holds, from the table of all parameters: of panels the weight, (out, in) or (out,
  /// in, *kernel).
  at::Tensor whole(size_t copy, at::TensorList table) const;

  std::vector<Pack::Entry> entries(const Description& description) const;

 private:
  /// A copy of a slice of one parameter, the widest that its users need.
  struct Copy {
    size_t place;
    PackedForm form;
    std::set<size_t> users = {};
    /// What is copied of the parameter: of the leading ones the widest.
    Layout slice = {};
    /// What is folded.
    const Operand* bias = nullptr;
    std::vector<const Step*> folded = {};
    /// Undefined where `panels` is there.
    at::Tensor plain = {};
    std::optional<PackedWeight> panels = std::nullopt;

    Shape shape() const;
    int64_t bytes() const;
  };

  /// The copy of a key, which is new where there was none.
  size_t copy_of(const std::string& key, const std::function<Copy()>& make);
  const PackedSlice* use(size_t copy, Shape kept);

  /// By place, form and slice, the leading slices of one parameter being one.
  std::map<std::string, size_t> places_;
  std::deque<Copy> copies_;
  std::deque<PackedSlice> uses_;
  std::vector<std::function<void()>> then_;
};

}  // namespace nsn::detail
