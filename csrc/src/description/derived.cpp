// The descriptions that are made of others.

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <utility>

#include "nsn/description/description.h"

namespace nsn {

Description Description::alone(const std::string& name) const {
  const SubnetworkPtr held = subnetwork(name);
  const Subnetwork& kept = *held;
  NetworkOptions options;
  options.input(input_, dtype_).dtype(parameter_dtype_);
  std::unordered_map<std::string, Shape> shapes;
  for (const size_t i : c10::irange(kept.blocks.size())) {
    const NamedBlock& block = blocks_[kept.blocks[i]];
    BlockPtr own = block.block->narrowed(kept.fits[i]);
    if (!own) own = block.block->copy();
    if (!own) own = block.block;
    for (const ParameterSpec& parameter : own->parameters()) {
      if (parameter.tied_to.empty()) continue;
      // Without the other block, or at another width than that, it has a parameter of its own.
      const auto owner = shapes.find(parameter.tied_to);
      if (owner != shapes.end() && owner->second == parameter.shape) continue;
      if (BlockPtr other = own->untied()) own = std::move(other);
      break;
    }
    for (const ParameterSpec& parameter : own->parameters()) {
      shapes.emplace(block.name + "." + parameter.name, parameter.shape);
    }
    options.block(block.name, std::move(own));
  }
  return Description(options);
}

Description Description::with_dtype(at::ScalarType dtype) const {
  TORCH_CHECK_VALUE(at::isFloatingType(dtype),
                    "nsn::Description: the parameters' dtype must be a "
                    "floating one, but got ",
                    dtype, ". Use float32.");
  Description result = *this;
  if (at::isFloatingType(dtype_)) result.dtype_ = dtype;
  result.parameter_dtype_ = dtype;
  for (Parameter& parameter : result.parameters_) {
    if (at::isFloatingType(parameter.dtype)) parameter.dtype = dtype;
  }
  return result;
}

Description Description::with_blocks(const std::function<BlockPtr(const Block&)>& replace) const {
  Description result = *this;
  for (NamedBlock& block : result.blocks_) {
    if (BlockPtr other = replace(*block.block)) block.block = std::move(other);
  }
  return result;
}

}  // namespace nsn
