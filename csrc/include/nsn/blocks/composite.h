#pragma once

#include <string>
#include <utility>
#include <vector>

#include <nsn/blocks/block.h>

// Blocks made of blocks, which are kept or dropped as a whole.

namespace nsn {

/// Blocks in a row. Their parameters and dimensions have the inner block's name in front:
/// "conv1.weight", "conv1.out".
class NSN_API Composite : public Block {
 public:
  /// With `is_residual` the input is added to the result, and the last inner block that has the
  /// dimension "out" is as wide as the input. Throws c10::ValueError where there is no block, or
  /// two have one name.
  Composite(std::vector<InnerBlock> blocks, bool is_residual);

  const std::vector<InnerBlock>& inner() const override { return blocks_; }

  std::vector<ParameterSpec> parameters() const override;
  std::vector<Dimension> dimensions() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  Lanes joint(Lanes inputs, const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  std::optional<double> dropout() const override;
  void check_rule(const merge::Rule& rule) const override;
  void initialize(at::TensorList parameters) const override;

 protected:
  /// The inner blocks as wide as a sub-network keeps them.
  std::vector<InnerBlock> narrowed_inner(const Fit& fit) const;

 private:
  std::vector<InnerBlock> blocks_;
  bool is_residual_;
  /// The block inside that is as wide as the input.
  std::optional<size_t> follows_;
  /// Of each inner block: how many parameters, and whether some are private.
  std::vector<size_t> counts_;
  std::vector<bool> has_private_;
};

/// Options for `Sequence`.
///
///     SequenceOptions().block("conv", Conv2dOptions(1, 32, 3)).block("norm", BatchNormOptions(32))
struct NSN_API SequenceOptions {
  SequenceOptions& block(std::string name, BlockPtr block, bool takes_dropout = true) {
    blocks_.push_back({std::move(name), std::move(block), takes_dropout});
    return *this;
  }
  const std::vector<InnerBlock>& blocks() const noexcept { return blocks_; }
  std::vector<InnerBlock>& blocks() noexcept { return blocks_; }
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)

 private:
  std::vector<InnerBlock> blocks_;
};

/// y = f_n(...f_1(x)).
class NSN_API Sequence final : public Composite {
 public:
  explicit Sequence(SequenceOptions options);

  std::string type() const override { return "Sequence"; }
  std::string options_json() const override;
  BlockPtr narrowed(const Fit& fit) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  SequenceOptions options_;
};

/// Options for `Residual`, as those of `Sequence`.
struct NSN_API ResidualOptions {
  ResidualOptions& block(std::string name, BlockPtr block, bool takes_dropout = true) {
    blocks_.push_back({std::move(name), std::move(block), takes_dropout});
    return *this;
  }
  const std::vector<InnerBlock>& blocks() const noexcept { return blocks_; }
  std::vector<InnerBlock>& blocks() noexcept { return blocks_; }
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)

 private:
  std::vector<InnerBlock> blocks_;
};

/// y = x + f_n(...f_1(x)); x and y have one shape, so that sub-networks may drop it anywhere.
class NSN_API Residual final : public Composite {
 public:
  explicit Residual(ResidualOptions options);

  std::string type() const override { return "Residual"; }
  std::string options_json() const override;
  BlockPtr narrowed(const Fit& fit) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  ResidualOptions options_;
};

}  // namespace nsn
