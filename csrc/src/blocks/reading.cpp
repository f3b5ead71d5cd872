#include "blocks/reading.h"

#include <c10/util/Exception.h>

#include <unordered_map>

#include "blocks/builtin.h"
#include "values/fields.h"

namespace nsn::detail {

namespace {

const BlockType* find_builtin(const std::string& name) {
  static const auto by_name = [] {  // asked for in each pass
    std::unordered_map<std::string, const BlockType*> result;
    for (const BlockType& type : builtin_types()) result.emplace(type.name, &type);
    return result;
  }();
  const auto found = by_name.find(name);
  return found == by_name.end() ? nullptr : found->second;
}

/// A block of a type that the caller supplied: all fields but these two are its options.
BlockPtr read_supplied(const Json& json, const BlockFactory& factory, const std::string& where) {
  Json options = json;
  options.erase("name");
  options.erase("type");
  BlockPtr block = factory(options.dump());
  TORCH_CHECK_VALUE(block != nullptr, "nsn::Description: ", where,
                    ": the factory of its type returned no block.");
  return block;
}

}  // namespace

const std::vector<BlockType>& builtin_types() {
#define NSN_CALL(name) block_type_##name(),
  static const std::vector<BlockType> all = {NSN_BUILTIN_BLOCKS(NSN_CALL)};
#undef NSN_CALL
  return all;
}

bool is_builtin(const std::string& type) { return find_builtin(type) != nullptr; }

BlockPtr read_block(const Json& json, const Supplied& supplied) {
  const std::string name = Fields(json, "a block").string("name");
  Fields fields(json, "block '" + name + "'");
  fields.string("name");
  const std::string type = fields.string("type");
  if (const auto own = supplied.blocks.find(type); own != supplied.blocks.end()) {
    return read_supplied(json, own->second, fields.where());
  }
  const BlockType* builtin = find_builtin(type);
  if (builtin == nullptr) {
    std::string known;
    for (const BlockType& each : builtin_types()) {
      known += (known.empty() ? "'" : ", '") + each.name + "'";
    }
    TORCH_CHECK_VALUE(false, "nsn::Description: ", fields.where(), " has an unknown type '", type,
                      "'. The types are ", known,
                      ". For a type of your own supply its factory when loading, in C++.");
  }
  BlockPtr block = builtin->read(fields, supplied);
  fields.finish();
  return block;
}

Json write_block(const std::string& name, const Block& block) {
  Json json{{"name", name}, {"type", block.type()}};
  json.update(Json::parse(block.options_json()));
  return json;
}

}  // namespace nsn::detail
