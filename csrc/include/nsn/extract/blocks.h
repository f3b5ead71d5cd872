#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <string>
#include <vector>

#include <nsn/blocks/block.h>
#include <nsn/description/description.h>
#include <nsn/values/layout.h>
#include <nsn/visibility.h>

// A sub-network by itself, as values: its blocks, as narrow as it keeps them, and which part of
// which of the network's tensors each of them reads.

namespace nsn {

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

}  // namespace nsn
