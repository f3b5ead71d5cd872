#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nsn/description/description.h>
#include <nsn/visibility.h>

namespace nsn {

namespace detail {
template <typename Value>
class Recent;
}  // namespace detail

/// Takes 64 bits from torch's default CPU generator, under its lock: a training pass's seed.
NSN_API uint64_t draw_seed();

/// What a description computes, as a function of parameters and input: the one implementation that
/// the C++ module, the Python module and views share. Holds no tensor and changes no state that a
/// caller could see, so any number of threads may call it at once. (The dropout of a training pass
/// draws from torch's default generator, under its lock. Passes that autograd records keep the
/// memory of their intermediate results and gradients for the next pass; it goes with the core.)
///
/// `parameters` always means the tensors of all blocks, buffers included, in the order of
/// Description::parameters(); those that no sub-network of the call uses may be undefined. The one
/// thing that a pass writes are running statistics (BatchNorm), in training.
class NSN_API Core {
 public:
  explicit Core(Description description);
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;
  ~Core();

  const Description& description() const noexcept { return description_; }

  /// A sub-network, and what its lane passes block by block. Who runs one holds it.
  struct Passage {
    Description::SubnetworkPtr subnetwork;
    std::vector<LanePass> blocks;
  };
  using PassagePtr = std::shared_ptr<const Passage>;
  /// That of the sub-network at a place; throws as Description::subnetwork.
  PassagePtr passage_of(size_t subnetwork) const;

  /// Inference of one sub-network, (B, *input) -> (B, *output), by its passage of this core.
  at::Tensor evaluate(at::TensorList parameters, const at::Tensor& x,
                      const PassagePtr& passage) const;

  /// New parameters, made and filled in the order of the names; draws from the default generator.
  std::vector<at::Tensor> initial_parameters() const;

  /// One forward of several sub-networks (places in the description) over one batch x: (B, *input),
  /// walking the blocks once. Returns one output (B, *output) each, in the order asked for.
  /// The outputs do not share storage.
  ///
  /// Throws c10::ValueError where x or a parameter has another shape or dtype than described, or
  /// where a sub-network is asked for twice.
  std::vector<at::Tensor> joint(at::TensorList parameters, const at::Tensor& x,
                                c10::ArrayRef<size_t> subnetworks, bool training) const;

  /// The output of one lane, `subnetworks[lane]`, of a joint pass over `subnetworks`, by itself.
  /// Its gradients are its part of the merged ones: those of all lanes, one after the other, add up
  /// to what backward of the joint pass gives. `seed` is the pass's, from draw_seed() in training,
  /// and the same for all its lanes. For linear rules.
  ///
  /// Throws as `joint`; and c10::ValueError where a parameter of the lane has a function rule, or
  /// where in training several of the lanes share running statistics, which a pass updates once.
  at::Tensor lane(at::TensorList parameters, const at::Tensor& x, c10::ArrayRef<size_t> subnetworks,
                  size_t lane, bool training, uint64_t seed) const;

  /// Throws c10::ValueError where x is no batch of the described shape and dtype.
  void check_input(const at::Tensor& x) const;

  /// Throws c10::ValueError where running statistics of these sub-networks were never made while
  /// other sub-networks' were: one cannot be evaluated by them.
  void check_statistics(at::TensorList parameters, c10::ArrayRef<size_t> subnetworks) const;

  /// A pass that makes running statistics from a batch: each one moves to the mean over all batches
  /// since `num_batches_tracked` was 0. Nothing is dropped.
  void calibrate(at::TensorList parameters, const at::Tensor& x,
                 c10::ArrayRef<size_t> subnetworks) const;

  /// A table in which these sub-networks have running statistics of their own, to be made anew by
  /// `calibrate`; all else is `parameters`' own. Throws c10::ValueError where they have none.
  std::vector<at::Tensor> start_statistics(at::TensorList parameters,
                                           c10::ArrayRef<size_t> subnetworks) const;

  /// Writes what `start_statistics` began into `parameters`.
  void take_statistics(at::TensorList parameters, at::TensorList made) const;

  /// The mask that the pass whose seed is `seed` applies behind `block` ("stage.conv1" for a block
  /// inside another) on the way of `subnetwork`, for activations of `shape`: true where an element
  /// is kept.
  at::Tensor dropout_mask(uint64_t seed, const std::string& subnetwork, const std::string& block,
                          double probability, at::IntArrayRef shape) const;

  /// The coefficient that the lane `subnetwork` has in the gradients of each parameter when all
  /// listed sub-networks run together; 0 where it does not use the parameter. Throws
  /// c10::ValueError for function rules, which have none, and where the coefficient changes inside
  /// a parameter; beside a grid, whose cells run with others in each step, for all rules but `sum`.
  std::vector<double> merge_coefficients(const std::string& subnetwork) const;

 private:
  /// How a pass runs.
  struct Mode {
    bool training = false;
    bool calibrating = false;
    /// Default: none, one is drawn for training.
    std::optional<uint64_t> seed = std::nullopt;
    /// The lanes of which this pass's one is a part. Default: none, those of the pass.
    std::vector<PassagePtr> part_of = {};
  };
  std::vector<PassagePtr> passages_of(c10::ArrayRef<size_t> subnetworks) const;
  std::vector<at::Tensor> run(at::TensorList parameters, const at::Tensor& x,
                              const std::vector<PassagePtr>& lanes, const Mode& mode) const;
  merge::Rule rule_of(size_t block, const std::vector<PassagePtr>& lanes, const Mode& mode) const;
  Passage trace(size_t subnetwork) const;
  class Walk;
  void check_parameters(at::TensorList parameters, const BlockPass& pass, size_t block,
                        const at::Tensor& x) const;
  void check_statistics(at::TensorList parameters, const LanePass& lane, size_t block) const;
  static void check_outputs(at::TensorList outputs, const Description::NamedBlock& block,
                            const BlockPass& pass, const c10::SymInt& batch);
  void share_tied(at::TensorList parameters, const std::vector<PassagePtr>& lanes, const Mode& mode,
                  TiedSlices& tied) const;

  Description description_;
  /// Those of the listed sub-networks.
  std::vector<PassagePtr> passages_;
  /// Those of the cells of a grid that ran last.
  std::unique_ptr<detail::Recent<Passage>> recent_;
  /// Whether some parameter is used by several blocks.
  bool has_tied_ = false;
  std::shared_ptr<Workspace> workspace_;
};

}  // namespace nsn
