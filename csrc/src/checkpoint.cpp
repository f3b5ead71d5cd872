#include "nsn/checkpoint.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "safetensors.h"

namespace nsn {

namespace {

constexpr const char* kDescriptionKey = "nsn";
constexpr const char* kFormatKey = "format";  // "pt": how other tools tell whose tensors these are

/// Parameters and buffers may change between floating dtypes, by Module::to, but counters stay.
bool same_kind(const at::Tensor& tensor, const Description::Parameter& parameter) {
  return at::isFloatingType(parameter.dtype) ? at::isFloatingType(tensor.scalar_type())
                                             : tensor.scalar_type() == parameter.dtype;
}

}  // namespace

void write_checkpoint(const Description& description, at::TensorList parameters,
                      const std::string& path, const Metadata& metadata) {
  TORCH_CHECK_VALUE(parameters.size() == description.parameters().size(), "nsn::save: expected ",
                    description.parameters().size(), " parameters, but got ", parameters.size(),
                    ".");
  safetensors::NamedTensors tensors;
  for (const Description::Parameter& parameter : description.parameters()) {
    const std::string& name = parameter.name;
    const at::Tensor& tensor = parameters[tensors.size()];
    TORCH_CHECK_VALUE(tensor.defined() && tensor.sizes() == at::IntArrayRef(parameter.shape),
                      "nsn::save: parameter '", name, "' must have shape ",
                      to_string(parameter.shape), ", but has ",
                      tensor.defined() ? to_string(tensor.sizes().vec()) : "none",
                      ". Save the network with its own parameters.");
    TORCH_CHECK_VALUE(same_kind(tensor, parameter), "nsn::save: parameter '", name,
                      "' must be floating, but has dtype ", tensor.scalar_type(),
                      ". Save the network with its own parameters.");
    tensors.emplace_back(name, tensor);
  }
  Metadata all = metadata;
  for (const char* key : {kDescriptionKey, kFormatKey}) {
    TORCH_CHECK_VALUE(metadata.count(key) == 0, "nsn::save: the metadata key '", key,
                      "' is the library's own. Choose another.");
  }
  all[kDescriptionKey] = description.to_json();
  all[kFormatKey] = "pt";
  safetensors::write(path, tensors, all);
}

Checkpoint read_checkpoint(const std::string& path, const Supplied& supplied) {
  safetensors::File file = safetensors::read(path);
  const auto text = file.metadata.find(kDescriptionKey);
  TORCH_CHECK_VALUE(text != file.metadata.end(), "nsn::load: '", path,
                    "' is a safetensors file, but not one of nsn: its metadata have no '",
                    kDescriptionKey, "'. Save the network with nsn::save.");
  Description description = Description::from_json(text->second, supplied);

  std::unordered_map<std::string, at::Tensor> found(file.tensors.begin(), file.tensors.end());
  std::vector<at::Tensor> parameters;
  for (const Description::Parameter& parameter : description.parameters()) {
    const std::string& name = parameter.name;
    const auto tensor = found.find(name);
    TORCH_CHECK_VALUE(tensor != found.end(), "nsn::load: '", path, "' lacks the tensor '", name,
                      "' of its description. The file is damaged; save it again.");
    TORCH_CHECK_VALUE(tensor->second.sizes() == at::IntArrayRef(parameter.shape), "nsn::load: '",
                      path, "': tensor '", name, "' has shape ",
                      to_string(tensor->second.sizes().vec()), ", but the description says ",
                      to_string(parameter.shape), ". The file is damaged; save it again.");
    TORCH_CHECK_VALUE(same_kind(tensor->second, parameter), "nsn::load: '", path, "': tensor '",
                      name, "' has the dtype ", tensor->second.scalar_type(),
                      ", but parameters are floating. The file is damaged; save it again.");
    parameters.push_back(tensor->second);
    found.erase(tensor);
  }
  TORCH_CHECK_VALUE(found.empty(), "nsn::load: '", path, "' has the tensor '", found.begin()->first,
                    "', which its description does not know. The file is damaged or foreign.");
  file.metadata.erase(kDescriptionKey);
  file.metadata.erase(kFormatKey);
  return {std::move(description), std::move(parameters), std::move(file.metadata)};
}

void save(const Network& net, const std::string& path, const Metadata& metadata) {
  write_checkpoint(net->description(), net->parameter_table(), path, metadata);
}

Network load(const std::string& path, const Supplied& supplied) {
  Checkpoint checkpoint = read_checkpoint(path, supplied);
  return Network(std::make_shared<NetworkImpl>(std::move(checkpoint.description),
                                               std::move(checkpoint.parameters)));
}

}  // namespace nsn
