#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nsn/network/core.h>
#include <nsn/network/load_report.h>
#include <nsn/visibility.h>

namespace nsn {

/// The parameters of a network: what they are, the tensors that stand for them at a moment, whose
/// are there, and where those of later moments come from. All that views, packs, copies, files and
/// optimizers know of a network.
class NSN_API ParameterTable {
 public:
  /// The tensors that a network has now; empty where the network is gone.
  using Current = std::function<std::vector<at::Tensor>()>;

  /// `tensors` are those of all blocks, buffers included, in the order of
  /// Description::parameters(); undefined ones are not there. Throws c10::ValueError where there is
  /// another number of them, or where one has another shape or kind of dtype than described.
  ParameterTable(std::shared_ptr<const Core> core, std::vector<at::Tensor> tensors,
                 LoadReport report = {}, Current current = nullptr);

  /// What the network computes, apart from its parameters.
  const Core& core() const noexcept { return *core_; }
  const std::shared_ptr<const Core>& shared_core() const noexcept { return core_; }
  const Description& description() const noexcept { return core_->description(); }

  const std::vector<at::Tensor>& tensors() const noexcept { return tensors_; }
  size_t size() const noexcept { return tensors_.size(); }
  const at::Tensor& operator[](size_t place) const { return tensors_[place]; }
  auto begin() const noexcept { return tensors_.begin(); }
  auto end() const noexcept { return tensors_.end(); }
  operator at::TensorList() const { return tensors_; }  // NOLINT(google-explicit-constructor)

  /// What came of its file, and whose parameters are missing.
  const LoadReport& report() const noexcept { return report_; }

  /// The sub-networks whose parameters are there, in order.
  std::vector<std::string> loaded() const { return report_.loaded(description().names()); }

  /// The places of these sub-networks, default all. Throws c10::ValueError for unknown ones, those
  /// that were not loaded, and one that is named twice.
  std::vector<size_t> places_of(const std::vector<std::string>& subnetworks) const;

  /// Throws c10::ValueError where a sub-network was not loaded.
  void check_loaded() const;

  /// Throws c10::ValueError unless all tensors are there.
  void check_whole() const;

  /// What these sub-networks read in inference, on the storages of this moment: detached tensors,
  /// so that a parameter may be pointed elsewhere meanwhile, and none of what they do not read.
  /// Blocks that hold modules evaluate on those of this moment, or on copies of them.
  ParameterTable for_inference(const std::vector<size_t>& subnetworks, bool copies_modules) const;

  /// The same of another moment, whose tensors are as this one's.
  ParameterTable at_moment(std::vector<at::Tensor> tensors) const;

  /// The tensors of the present; empty where the network is gone or nobody can tell.
  std::vector<at::Tensor> now() const;

 private:
  std::shared_ptr<const Core> core_;
  std::vector<at::Tensor> tensors_;
  LoadReport report_;
  Current current_;
};

}  // namespace nsn
