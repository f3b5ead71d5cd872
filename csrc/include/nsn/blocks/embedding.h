#pragma once

#include <torch/arg.h>

#include <string>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/blocks/parts.h>

namespace nsn {

/// Options for `Embedding`.
struct NSN_API EmbeddingOptions {
  EmbeddingOptions(int64_t num_embeddings, int64_t embedding_dim)
      : num_embeddings_(num_embeddings), embedding_dim_(embedding_dim) {}

  /// How many indices there are.
  TORCH_ARG(int64_t, num_embeddings);

  /// The last extent of the output.
  TORCH_ARG(int64_t, embedding_dim);

  /// The weight starts as N(0, std^2). Default: 1, as torch::nn::Embedding.
  TORCH_ARG(double, std) = 1.0;

  /// The probability that an element is dropped in training. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// y = dropout(E[x]): x integral (B, *), y (B, *, embedding_dim); parameter `weight`
/// (num_embeddings, embedding_dim). Dimension: "out".
class NSN_API Embedding final : public Block {
 public:
  explicit Embedding(EmbeddingOptions options);

  const EmbeddingOptions& options() const noexcept { return options_; }

  std::string type() const override { return "Embedding"; }
  std::string options_json() const override;
  std::vector<ParameterSpec> parameters() const override;
  std::vector<Dimension> dimensions() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  Lanes joint(Lanes inputs, const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  BlockPtr narrowed(const Fit& fit) const override;
  std::optional<double> dropout() const override { return options_.dropout(); }
  void initialize(at::TensorList parameters) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  EmbeddingOptions options_;
};

/// Options for `PositionEmbedding`.
struct NSN_API PositionEmbeddingOptions {
  PositionEmbeddingOptions(int64_t length, int64_t features)
      : length_(length), features_(features) {}

  /// The most positions.
  TORCH_ARG(int64_t, length);

  /// The last extent of input and output.
  TORCH_ARG(int64_t, features);

  /// The weight starts as N(0, std^2). Default: 1.
  TORCH_ARG(double, std) = 1.0;

  /// The probability that an element is dropped in training. Default: 0.
  TORCH_ARG(double, dropout) = 0.0;

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// y = dropout(x + P[:T]): x, y (B, T, features), T up to `length`; parameter `weight` (length,
/// features). The output is as wide as the input.
class NSN_API PositionEmbedding final : public Block {
 public:
  explicit PositionEmbedding(PositionEmbeddingOptions options);

  std::string type() const override { return "PositionEmbedding"; }
  std::string options_json() const override;
  std::vector<ParameterSpec> parameters() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  Lanes joint(Lanes inputs, const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  BlockPtr narrowed(const Fit& fit) const override;
  std::optional<double> dropout() const override { return options_.dropout(); }
  void initialize(at::TensorList parameters) const override;
  void pretty_print(std::ostream& stream) const override;

 private:
  PositionEmbeddingOptions options_;
};

/// Options for `TiedOutput`.
struct NSN_API TiedOutputOptions {
  TiedOutputOptions(std::string embedding, int64_t num_embeddings, int64_t embedding_dim)
      : embedding_(std::move(embedding)),
        num_embeddings_(num_embeddings),
        embedding_dim_(embedding_dim) {}

  /// The name of the Embedding whose weight it uses, and that block's extents.
  TORCH_ARG(std::string, embedding);
  TORCH_ARG(int64_t, num_embeddings);
  TORCH_ARG(int64_t, embedding_dim);

  /// Whether to add a bias. Default: false.
  TORCH_ARG(bool, bias) = false;

  /// What each sub-network has for itself: "bias" or nothing. Default: nothing.
  TORCH_ARG(Parts, per_subnetwork) = {};

 public:
  operator BlockPtr() const;  // NOLINT(google-explicit-constructor)
};

/// y = x E^T + bias with an Embedding's weight E: x (B, *, embedding_dim), y (B, *,
/// num_embeddings); parameter `bias` (num_embeddings). Each sub-network's gradient of E is the sum
/// over its uses, which the embedding's rule then merges. Source: Press & Wolf, "Using the Output
/// Embedding to Improve Language Models", 2017.
class NSN_API TiedOutput final : public Block {
 public:
  explicit TiedOutput(TiedOutputOptions options);

  std::string type() const override { return "TiedOutput"; }
  std::string options_json() const override;
  std::vector<ParameterSpec> parameters() const override;
  Fit fit(const Signal& input, const BlockUse& use) const override;
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& lane,
                     const BlockPass& pass) const override;
  size_t lower(Lowering& to, size_t x) const override;
  BlockPtr narrowed(const Fit& fit) const override;
  void initialize(at::TensorList parameters) const override;
  void pretty_print(std::ostream& stream) const override;

  /// The Dense block that does the same with a weight of its own.
  BlockPtr untied() const override;

 private:
  TiedOutputOptions options_;
};

}  // namespace nsn
