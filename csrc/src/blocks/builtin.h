#pragma once

#include <vector>

#include "blocks/options.h"
#include "nsn/visibility.h"

// The one list of nsn's own types of blocks. Each is defined beside its block, as
// `BlockType block_type_Dense()`; one that is not does not link.

// NOLINTBEGIN(cppcoreguidelines-macro-usage)
#define NSN_BUILTIN_BLOCKS(X) \
  X(Activation)               \
  X(Attention)                \
  X(AvgPool1d)                \
  X(AvgPool2d)                \
  X(BatchNorm)                \
  X(Conv1d)                   \
  X(Conv2d)                   \
  X(ConvTranspose2d)          \
  X(Dense)                    \
  X(Dropout)                  \
  X(Embedding)                \
  X(Flatten)                  \
  X(GlobalAvgPool)            \
  X(GroupNorm)                \
  X(LayerNorm)                \
  X(MaxPool1d)                \
  X(MaxPool2d)                \
  X(PositionEmbedding)        \
  X(RMSNorm)                  \
  X(Residual)                 \
  X(Sequence)                 \
  X(TiedOutput)               \
  X(Transformer)              \
  X(Upsample)
// NOLINTEND(cppcoreguidelines-macro-usage)

namespace nsn::detail {

#define NSN_DECLARE(name) BlockType block_type_##name();
NSN_BUILTIN_BLOCKS(NSN_DECLARE)
#undef NSN_DECLARE

/// All of them, in the order of the list.
NSN_API const std::vector<BlockType>& builtin_types();

}  // namespace nsn::detail
