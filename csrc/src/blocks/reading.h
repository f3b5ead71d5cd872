#pragma once

#include <string>

#include "nsn/blocks/block.h"
#include "nsn/blocks/supplied.h"
#include "values/json.h"

// Blocks to and from JSON: {"name": .., "type": .., options}.

namespace nsn::detail {

/// Throws c10::ValueError where the type is unknown or the options are wrong.
BlockPtr read_block(const Json& json, const Supplied& supplied);

/// Whether `type` is one of nsn's own blocks.
bool is_builtin(const std::string& type);

Json write_block(const std::string& name, const Block& block);

}  // namespace nsn::detail
