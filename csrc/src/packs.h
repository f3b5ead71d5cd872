#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "nsn/block.h"
#include "nsn/blocks/activation.h"
#include "nsn/functional/convolution.h"
#include "nsn/pack.h"
#include "packed_weight.h"

namespace nsn::detail {

/// Places among a block's parameters.
struct ProductPlaces {
  size_t weight;
  std::optional<size_t> scale = std::nullopt, bias = std::nullopt;
};

/// What the blocks of packed passes compute with. It is filled by passes over the network's own
/// parameters, in which blocks ask for what they will need (`is_filling`), and constant afterwards:
/// then any number of threads may compute with it.
///
/// A pack belongs to one slice of one parameter. Slices are found by the address of their layout in
/// the description, which stays where it is as long as the core does: a block cannot be given
/// another slice's pack.
class Packs {
 public:
  /// activation(scale * (x W^T) + bias) of the pass's one lane. x: (*, kept in).
  at::Tensor product(const BlockPass& pass, const ProductPlaces& places,
                     const Activation& activation, const at::Tensor& x);

  /// W * x + bias of the pass's one lane, and ReLU behind it. x: (B, kept in, *); causal padding is
  /// the caller's.
  at::Tensor convolution(const BlockPass& pass, size_t weight, std::optional<size_t> bias,
                         const functional::ConvGeometry& geometry, bool relu, const at::Tensor& x);

  /// Says that a pass reads a parameter as it is.
  void note_read(const BlockPass& pass, size_t p, size_t lane);

  /// Ends filling. Returns the table for packed passes: copies of what is read as it is, and for
  /// what is packed tensors of the right shape without memory of their own.
  std::vector<at::Tensor> finish(at::TensorList table);

  std::vector<Pack::Entry> entries(const Description& description) const;

 private:
  /// One slice of one parameter, in the form that its users read.
  struct Slice {
    size_t place;
    Shape shape;
    std::set<size_t> users = {};  // sub-networks
    /// Plain: contiguous, or in channels-last. Undefined where no batch size uses it.
    at::Tensor plain = {};
    std::optional<PackedWeight> product = std::nullopt;
    /// In oneDNN's format, and for each batch size that was timed whether it is the faster.
    at::Tensor onednn = {};
    std::map<int64_t, bool> onednn_is_faster = {};
  };

  Slice& slice(const BlockPass& pass, size_t p, const char* form);
  const at::Tensor& vector(const BlockPass& pass, size_t p);
  static void fill_convolution(Slice& slice, const at::Tensor& weight, const at::Tensor& bias,
                               const functional::ConvGeometry& geometry, bool relu,
                               const at::Tensor& x);

  bool is_filling_ = true;
  /// By place, slice and form.
  std::map<std::string, std::unique_ptr<Slice>> slices_;
  std::unordered_map<const Layout*, Slice*> by_layout_;
  /// Parameters that are read as they are: place to sub-networks.
  std::map<size_t, std::set<size_t>> reads_;
  std::map<size_t, int64_t> read_bytes_;
};

}  // namespace nsn::detail
