#include "reading.h"

#include <c10/util/Exception.h>

#include <map>

#include "builtin.h"

namespace nsn::detail {

namespace {

const std::map<std::string, BlockReader>& readers() {
  static const std::map<std::string, BlockReader> all = {
      {"Activation", &read_activation},
      {"Attention", &read_attention},
      {"AvgPool1d", &read_avg_pool1d},
      {"AvgPool2d", &read_avg_pool2d},
      {"BatchNorm", &read_batch_norm},
      {"Conv1d", &read_conv1d},
      {"Conv2d", &read_conv2d},
      {"ConvTranspose2d", &read_conv_transpose2d},
      {"Dense", &read_dense},
      {"Dropout", &read_dropout},
      {"Embedding", &read_embedding},
      {"Flatten", &read_flatten},
      {"GlobalAvgPool", &read_global_avg_pool},
      {"GroupNorm", &read_group_norm},
      {"LayerNorm", &read_layer_norm},
      {"MaxPool1d", &read_max_pool1d},
      {"MaxPool2d", &read_max_pool2d},
      {"PositionEmbedding", &read_position_embedding},
      {"RMSNorm", &read_rms_norm},
      {"Residual", &read_residual},
      {"Sequence", &read_sequence},
      {"TiedOutput", &read_tied_output},
      {"Transformer", &read_transformer},
      {"Upsample", &read_upsample},
  };
  return all;
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

bool is_builtin(const std::string& type) { return readers().count(type) > 0; }

BlockPtr read_block(const Json& json, const Supplied& supplied) {
  const std::string name = Fields(json, "a block").string("name");
  Fields fields(json, "block '" + name + "'");
  fields.string("name");
  const std::string type = fields.string("type");
  if (const auto own = supplied.blocks.find(type); own != supplied.blocks.end()) {
    return read_supplied(json, own->second, fields.where());
  }
  const auto reader = readers().find(type);
  if (reader == readers().end()) {
    std::string known;
    for (const auto& [each, read] : readers()) {
      static_cast<void>(read);
      known += (known.empty() ? "'" : ", '") + each + "'";
    }
    TORCH_CHECK_VALUE(false, "nsn::Description: ", fields.where(), " has an unknown type '", type,
                      "'. The types are ", known,
                      ". For a type of your own supply its factory when loading, in C++.");
  }
  BlockPtr block = reader->second(fields, supplied);
  fields.finish();
  return block;
}

Json write_block(const std::string& name, const Block& block) {
  Json json{{"name", name}, {"type", block.type()}};
  json.update(Json::parse(block.options_json()));
  return json;
}

}  // namespace nsn::detail
