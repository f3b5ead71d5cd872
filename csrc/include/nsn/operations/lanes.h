#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <utility>
#include <vector>

#include <nsn/operations/memory.h>
#include <nsn/visibility.h>

namespace nsn {

/// What blocks hand on in a joint pass: one tensor for each lane, in the order of the pass's lanes.
///
/// Tensors of several lanes may lie one behind the other in one buffer, so that the next product
/// finds them stacked, with room behind them for lanes that come in there; lanes of one way may
/// even have the same memory. So whoever means to write asks `is_spare` first.
class NSN_API Lanes {
 public:
  Lanes() = default;
  Lanes(std::vector<at::Tensor> tensors)  // NOLINT(google-explicit-constructor): what torch gives
      : tensors_(std::move(tensors)) {}

  size_t size() const noexcept { return tensors_.size(); }
  const at::Tensor& operator[](size_t lane) const { return tensors_[lane]; }
  auto begin() const noexcept { return tensors_.begin(); }
  auto end() const noexcept { return tensors_.end(); }
  operator at::TensorList() const { return tensors_; }  // NOLINT(google-explicit-constructor)

  void push_back(at::Tensor tensor) { tensors_.push_back(std::move(tensor)); }
  void set(size_t lane, at::Tensor tensor) { tensors_[lane] = std::move(tensor); }

  /// The tensor of a lane, which has none from then on.
  at::Tensor take(size_t lane) { return std::move(tensors_[lane]); }

  /// Whether these lanes alone can read the memory of this one: then an operation may write its
  /// result there. What lies in a buffer beside others, what autograd saved and what anybody else
  /// holds is not spare.
  bool is_spare(size_t lane) const;

  /// A copy of x in `room`, where it was made behind these lanes' buffer and has x's size and
  /// dtype; else undefined.
  at::Tensor lay_behind(const at::Tensor& x, functional::Room room) const;

  /// For a caller, who may write into what it gets: each tensor alone in its memory.
  std::vector<at::Tensor> for_caller() &&;

 private:
  std::vector<at::Tensor> tensors_;
};

}  // namespace nsn
