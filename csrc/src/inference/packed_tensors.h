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

/// What a step reads: a slice of one of the pack's tensors. `fill` sets it.
struct PackedSlice {
  /// The slice, where it is not in panels.
  at::Tensor plain;
  std::optional<kernels::Panels> panels;
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
  struct Use {
    Copy* copy;
    /// The part of the copy.
    Shape kept;
    PackedSlice slice;
  };

  static void fill(Copy& copy, at::TensorList table);

  /// By place, form and slice, the leading slices of one parameter being one.
  std::map<std::string, std::unique_ptr<Copy>> copies_;
  std::deque<Use> uses_;
  std::vector<std::function<void()>> then_;
};

}  // namespace nsn::detail
