#pragma once

#include <c10/util/ArrayRef.h>

#include <string>
#include <utility>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/program/program.h>
#include <nsn/visibility.h>

namespace nsn {

/// What `Block::lower` is given: the program of one sub-network, to which it appends its steps, and
/// how the sub-network keeps the block.
///
///     size_t Stretch::lower(nsn::Lowering& to, size_t x) const {
///       return to.step("", nsn::primitives::ScaleAndShift{-1}, {x}, {to.operand(0, "scale")});
///     }
class NSN_API Lowering {
 public:
  /// `names` are those of the table of parameters, in which `places` are the block's own.
  Lowering(Program& program, c10::ArrayRef<std::string> names, std::string path, BlockPtr block,
           const Fit& fit, const ParameterPlace* places);

  const Fit& fit() const noexcept { return fit_; }

  /// Appends a step, and returns the value that it makes. `part` says what the step is in the
  /// block: "linear", "activation"; empty where it is all of it.
  size_t step(std::string part, Primitive primitive, std::vector<size_t> inputs,
              std::vector<Operand> operands = {});

  /// Parameter `p` of the block, as the sub-network keeps it, for a step that calls it `role`.
  Operand operand(size_t p, std::string role) const;

  /// Appends the steps of inner block `i`, whose first parameter is number `first` of the block's.
  size_t inner(size_t i, size_t first, size_t x);

  /// Appends one step that calls the block itself: for what no primitive is.
  size_t call(size_t x);

 private:
  Program& program_;
  c10::ArrayRef<std::string> names_;
  std::string path_;
  BlockPtr block_;
  const Fit& fit_;
  const ParameterPlace* places_;
  std::vector<ParameterSpec> specs_;
};

}  // namespace nsn
