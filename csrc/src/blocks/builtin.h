#pragma once

#include "fields.h"
#include "nsn/block.h"
#include "nsn/description.h"

// The readers of the built-in types, each beside its block.

namespace nsn::detail {

using BlockReader = BlockPtr (*)(Fields& fields, const Supplied& supplied);

BlockPtr read_dense(Fields& fields, const Supplied& supplied);
BlockPtr read_conv1d(Fields& fields, const Supplied& supplied);
BlockPtr read_conv2d(Fields& fields, const Supplied& supplied);
BlockPtr read_conv_transpose2d(Fields& fields, const Supplied& supplied);
BlockPtr read_upsample(Fields& fields, const Supplied& supplied);
BlockPtr read_max_pool1d(Fields& fields, const Supplied& supplied);
BlockPtr read_max_pool2d(Fields& fields, const Supplied& supplied);
BlockPtr read_avg_pool1d(Fields& fields, const Supplied& supplied);
BlockPtr read_avg_pool2d(Fields& fields, const Supplied& supplied);
BlockPtr read_global_avg_pool(Fields& fields, const Supplied& supplied);
BlockPtr read_flatten(Fields& fields, const Supplied& supplied);
BlockPtr read_embedding(Fields& fields, const Supplied& supplied);
BlockPtr read_position_embedding(Fields& fields, const Supplied& supplied);
BlockPtr read_tied_output(Fields& fields, const Supplied& supplied);
BlockPtr read_layer_norm(Fields& fields, const Supplied& supplied);
BlockPtr read_rms_norm(Fields& fields, const Supplied& supplied);
BlockPtr read_group_norm(Fields& fields, const Supplied& supplied);
BlockPtr read_batch_norm(Fields& fields, const Supplied& supplied);
BlockPtr read_activation(Fields& fields, const Supplied& supplied);
BlockPtr read_dropout(Fields& fields, const Supplied& supplied);
BlockPtr read_sequence(Fields& fields, const Supplied& supplied);
BlockPtr read_residual(Fields& fields, const Supplied& supplied);
BlockPtr read_attention(Fields& fields, const Supplied& supplied);
BlockPtr read_transformer(Fields& fields, const Supplied& supplied);

}  // namespace nsn::detail
