#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include <nsn/network/parameter_table.h>
#include <nsn/visibility.h>

namespace nsn {

class Network;
class PackedView;

/// A snapshot of a network's weights, laid out for inference: the fastest way to run sub-networks,
/// at the price of one copy of the weights that they use.
///
/// - A sub-network of float32 on the CPU runs as a plan (nsn/inference/plan.h): its batch norms,
///   scales, activations and residual sums are part of the product or convolution in front of
///   them, and buffers lie in one arena of the thread. Others run their program step by step, on
///   copies.
/// - Products (Dense, TiedOutput, those of Attention) and convolutions without groups read panels
///   of the weight. One copy serves all batch sizes, and all leading slices of a weight; a slice
///   that is none (of heads, of gated halves) has its own.
/// - In a plan batch norms, scales and shifts behind one another are one scale and shift.
/// - Whatever else a sub-network reads is copied as it is.
///
/// What the network does afterwards changes nothing here; `stale` tells whether it did, and
/// `refresh` packs anew. The Pack outlives its network. Packed views may be called by any number of
/// threads, also while `refresh` runs: a call takes no lock, and ends with what it began with.
class NSN_API Pack {
 public:
  /// Of a network's weights, for the sub-networks named; default: all listed. Throws
  /// c10::ValueError for unknown ones, and for those that were not loaded.
  explicit Pack(const Network& net, const std::vector<std::string>& subnetworks = {});

  /// The same of any table.
  explicit Pack(const ParameterTable& network, const std::vector<std::string>& subnetworks = {});

  /// Of a runtime file (nsn/checkpoint/runtime_file.h), mapped: weights are read where they lie,
  /// one copy for all processes, of the type that the file has. There is no network, so that it is
  /// never stale. Of a file that ends early it has the sub-networks that are there. Throws
  /// c10::ValueError where the file cannot be read, or is none.
  static Pack map(const std::string& path);

  /// A handle on one sub-network; throws c10::ValueError where it is not in this pack.
  PackedView view(const std::string& subnetwork) const;

  /// Whether the network's weights are other ones now, in place or moved. False once the network is
  /// gone: nothing newer exists then. Reads all of the weights once, some milliseconds for ten MB:
  /// not for the loop of an application that has to answer in time.
  bool stale() const;
  /// The same, against tensors of all blocks that the caller knows to be the network's.
  bool stale(at::TensorList current) const;

  /// Packs anew; all views made of this pack see it. Throws c10::ValueError once the network is
  /// gone, and where there was none.
  void refresh();
  void refresh(at::TensorList parameters);

  /// One copy of one slice of one parameter.
  struct Entry {
    /// "hidden1.weight"; of what is folded the running mean, or the first of it. Files have no
    /// names of parameters, but "tensor 3".
    std::string parameter;
    /// The extents of the widest slice that it serves.
    Shape shape;
    /// "product" or "convolution" (panels), "taps" (a convolution in groups, or transposed),
    /// "folded" (a scale and a shift) or "copy".
    std::string form;
    int64_t bytes;
    /// Who uses it, in the order of the description.
    std::vector<std::string> subnetworks;
  };
  std::vector<Entry> entries() const;

  /// What it holds, in bytes: the sum over `entries`.
  int64_t bytes() const;

  struct State;

 private:
  explicit Pack(std::shared_ptr<State> state);

  std::shared_ptr<State> state_;
};

/// A handle on one sub-network of a Pack; const, thread-safe, and cheap to copy.
class NSN_API PackedView {
 public:
  /// y for a batch x: (B, *input) -> (B, *output). Evaluates, and records no gradients; computes in
  /// the weights' dtype under autocast too.
  at::Tensor operator()(const at::Tensor& x) const;

  /// The same into memory of the caller's, (B, *output), contiguous and of the weights' dtype, that
  /// shares none with x. A plan without blocks of one's own then allocates nothing, but for the
  /// first calls on a thread: it keeps the memory of the largest until it ends. Throws
  /// c10::ValueError where `out` does not fit.
  void operator()(const at::Tensor& x, const at::Tensor& out) const;

  /// The sub-network's name.
  const std::string& name() const;

  /// As of the Pack.
  bool stale() const;

 private:
  friend class Pack;
  PackedView(std::shared_ptr<const Pack::State> state, size_t index);

  template <typename Run>
  void run(const at::Tensor& x, const Run& run) const;

  std::shared_ptr<const Pack::State> state_;
  size_t index_;  // among those of the pack
};

/// A table for people.
NSN_API std::ostream& operator<<(std::ostream& stream, const std::vector<Pack::Entry>& entries);

}  // namespace nsn
