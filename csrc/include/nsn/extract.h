#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include <nsn/block.h>
#include <nsn/description.h>
#include <nsn/export.h>
#include <nsn/layout.h>

// A sub-network by itself, as values: its blocks, as narrow as it keeps them, and which part of
// which of the network's tensors each of them reads. What copies and exports are made from.

namespace torch::nn {
class Sequential;
}

namespace nsn {

class Network;

/// Where one parameter or buffer of an extracted block comes from.
struct ExtractedParameter {
  /// As the block names it: "weight", "attention.self.qkv.weight".
  std::string name;
  /// Its place in Description::parameters(). Blocks that share a parameter have one place.
  size_t place;
  /// What the sub-network keeps of it; all of a private one.
  Layout slice;
  bool is_buffer;
};

/// One block as a sub-network keeps it.
struct NSN_API ExtractedBlock {
  std::string name;
  /// Does by itself what the block does in the sub-network, with the sub-network's dropout.
  BlockPtr block;
  /// In the order of Block::parameters().
  std::vector<ExtractedParameter> parameters;

  /// The block in JSON: its name, type and options (docs/blocks.md).
  std::string document() const;
};

/// The blocks of a sub-network: those of Description::alone. Throws c10::ValueError where a block
/// cannot be made narrower.
NSN_API std::vector<ExtractedBlock> extract_blocks(const Description& description,
                                                   const std::string& subnetwork);

/// The sub-network's own copy of a parameter: contiguous, of the extracted block's shape. Throws
/// c10::ValueError where `whole` has not the slice's full shape.
NSN_API at::Tensor extract_tensor(const at::Tensor& whole, const Layout& slice);

/// A sub-network as plain torch::nn modules that know nothing of nsn (include <torch/torch.h>):
/// contiguous weights of its own, on the network's device, training and frozen as there, and the
/// view's outputs. Modules are named after their blocks: "hidden1", "hidden1_activation",
/// "hidden1_dropout"; "stage_conv" for a block inside a Sequence. A `scale` is multiplied into the
/// rows of its weight.
///
/// Throws c10::ValueError where torch::nn has no such module, or the modules would not read one
/// another in a row: Residual, Attention, Transformer, RMSNorm, PositionEmbedding, TiedOutput,
/// gated activations but for GLU, blocks of one's own and wrapped ones. The default generator is
/// left as it was.
NSN_API torch::nn::Sequential extract(const Network& net, const std::string& subnetwork);

}  // namespace nsn
