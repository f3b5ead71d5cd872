#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include <nsn/core.h>
#include <nsn/export.h>
#include <nsn/view.h>

namespace nsn {

class PackedView;

/// Options for a Pack.
class NSN_API PackOptions {
 public:
  /// The sub-networks that it serves. Default: empty, all.
  PackOptions& subnetworks(std::vector<std::string> names) {
    subnetworks_ = std::move(names);
    return *this;
  }

  /// The batch sizes at which the forms of convolutions are timed against each other. Views take
  /// any batch; one of another size runs as the nearest of these. Default: 1 and 8.
  PackOptions& batch_sizes(std::vector<int64_t> sizes) {
    batch_sizes_ = std::move(sizes);
    return *this;
  }

  const std::vector<std::string>& subnetworks() const noexcept { return subnetworks_; }
  const std::vector<int64_t>& batch_sizes() const noexcept { return batch_sizes_; }

 private:
  std::vector<std::string> subnetworks_;
  std::vector<int64_t> batch_sizes_ = {1, 8};
};

/// A snapshot of a network's weights, laid out for inference: the fastest way to run sub-networks,
/// at the price of one copy of the weights that they use. Sub-networks that use the same slice of a
/// weight share its pack.
///
/// - Products (Dense, TiedOutput, the four of Attention) run on panels of the weight that serve all
///   batch sizes, with scale, bias and ReLU in the same pass. In float32 on the CPU.
/// - Convolutions run on a channels-last copy, or on oneDNN's own format where that was the faster
///   at a batch size when it was packed.
/// - Whatever else a sub-network reads is copied as it is.
///
/// What the network does afterwards changes nothing here; `stale` tells whether it did, and
/// `refresh` packs anew. The Pack outlives its network. Packed views may be called by any number of
/// threads, also while `refresh` runs: a call that has begun ends with what it began with.
class NSN_API Pack {
 public:
  /// What Network::pack calls. `parameters` are those of all blocks, as Core takes them. Throws
  /// c10::ValueError for unknown sub-networks and for batch sizes below 1.
  Pack(std::shared_ptr<const Core> core, at::TensorList parameters, const PackOptions& options = {},
       View::Current current = nullptr);

  /// A handle on one sub-network; throws c10::ValueError where it is not in this pack.
  PackedView view(const std::string& subnetwork) const;

  /// Whether the network's weights are other ones now, in place or moved. Reads all of them once.
  /// False once the network is gone: nothing newer exists then.
  bool stale() const;
  /// The same, against tensors of all blocks that the caller knows to be the network's.
  bool stale(at::TensorList current) const;

  /// Packs anew; all views made of this pack see it. Throws c10::ValueError once the network is
  /// gone.
  void refresh();
  void refresh(at::TensorList parameters);

  /// One copy of one slice of one parameter.
  struct Entry {
    /// "hidden1.weight".
    std::string parameter;
    /// The extents of the slice.
    Shape shape;
    /// "product", "convolution", "convolution by oneDNN" or "copy".
    std::string form;
    /// Of a convolution: at which of the batch sizes this form is used. Empty: at all.
    std::vector<int64_t> batch_sizes;
    int64_t bytes;
    /// Who uses it, in the order of the description.
    std::vector<std::string> subnetworks;
  };
  std::vector<Entry> entries() const;

  /// What it holds, in bytes: the sum over `entries`.
  int64_t bytes() const;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

/// A handle on one sub-network of a Pack; const, thread-safe, and cheap to copy.
class NSN_API PackedView {
 public:
  /// y for a batch x: (B, *input) -> (B, *output). Evaluates, and records no gradients; computes in
  /// the weights' dtype under autocast too.
  at::Tensor operator()(const at::Tensor& x) const;

  /// The sub-network's name.
  const std::string& name() const;

  /// As of the Pack.
  bool stale() const;

 private:
  friend class Pack;
  PackedView(std::shared_ptr<const Pack::State> state, size_t subnetwork);

  std::shared_ptr<const Pack::State> state_;
  size_t subnetwork_;
};

/// A table for people.
NSN_API std::ostream& operator<<(std::ostream& stream, const std::vector<Pack::Entry>& entries);

}  // namespace nsn
