#pragma once

#include <ATen/core/Tensor.h>

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

struct NormPlaces {
  size_t mean, variance;
  std::optional<size_t> weight = std::nullopt, bias = std::nullopt;
};

/// What the blocks of packed passes compute with. It is filled by passes over the network's own
/// parameters, in which blocks ask for what they will need and get it computed plainly; `finish`
/// lays the weights out, and from then on it is constant, for any number of threads.
///
/// What a block gets is found by the address of its slice's layout in the description, which stays
/// where it is as long as the core does: a block cannot be given another slice's. Leading slices of
/// one weight are served by one copy, of the widest.
class Packs {
 public:
  /// activation(scale * (x W^T) + bias) of the pass's one lane. x: (*, kept in).
  at::Tensor product(const BlockPass& pass, const ProductPlaces& places,
                     const Activation& activation, const at::Tensor& x);

  /// activation(scale * (W * x) + bias), of one or two dimensions; a causal block pads x itself. x:
  /// (B, kept in, *).
  at::Tensor convolution(const BlockPass& pass, const ProductPlaces& places,
                         const functional::ConvGeometry& geometry, const Activation& activation,
                         const at::Tensor& x);

  /// Batch norm with running statistics. x: (B, kept features, *).
  at::Tensor batch_norm(const BlockPass& pass, const NormPlaces& places, double eps,
                        const at::Tensor& x);

  /// Says that a pass reads a parameter as it is.
  void note_read(const BlockPass& pass, size_t p, size_t lane);

  bool is_filling() const { return is_filling_; }

  /// Ends filling. Returns the table for packed passes: copies of what is read as it is, and for
  /// all else tensors of the right shape without memory of their own.
  std::vector<at::Tensor> finish(at::TensorList table);

  std::vector<Pack::Entry> entries(const Description& description) const;

 private:
  enum class Form { kProduct, kConvolution, kNorm, kCopy };

  /// A copy of one slice of one parameter, the widest that its users need.
  struct Weight {
    size_t place;
    Form form;
    std::set<size_t> users = {};  // sub-networks
    /// Undefined where `packed` is there.
    at::Tensor plain = {};
    std::optional<PackedWeight> packed = std::nullopt;
    Shape shape = {};
  };
  /// What one block of one sub-network reads of it.
  struct Part {
    Weight* weight;
    Shape kept;

    /// The slice, of what is not packed.
    at::Tensor plain() const;
    /// The slice of a vector, or null.
    static const float* data(const Part* part);
  };

  const Part& part(const BlockPass& pass, size_t p, Form form);
  const Part* part(const BlockPass& pass, std::optional<size_t> p);
  static at::Tensor own(const BlockPass& pass, size_t p);
  static std::unique_ptr<Weight> fold(const BlockPass& pass, const NormPlaces& places, double eps);

  bool is_filling_ = true;
  /// By place, form and slice, the leading slices of one parameter being one.
  std::map<std::string, std::unique_ptr<Weight>> weights_;
  std::unordered_map<const Layout*, Part> parts_;
  /// Parameters that are read as they are: place to sub-networks, and to their copies' bytes.
  std::map<size_t, std::set<size_t>> reads_;
  std::map<size_t, int64_t> read_bytes_;
};

}  // namespace nsn::detail
