#pragma once

#include <functional>
#include <map>
#include <string>

#include <nsn/blocks/block.h>
#include <nsn/values/merge.h>

namespace nsn {

/// Makes a block from what its `options_json` gave.
using BlockFactory = std::function<BlockPtr(const std::string& options_json)>;

/// What a file cannot hold, by name.
struct Supplied {
  /// Function rules. One that is missing is an error only when a joint pass needs it.
  std::map<std::string, merge::Rule> rules = {};
  /// Types of blocks of one's own.
  std::map<std::string, BlockFactory> blocks = {};
};

}  // namespace nsn
