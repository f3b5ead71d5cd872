#include "nsn/description/lower.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include "nsn/blocks/lowering.h"

namespace nsn {

Program lower(const Description& description, const std::string& name) {
  const auto held = description.subnetwork(name);
  const auto& subnetwork = *held;
  const std::vector<std::string> names = description.parameter_names();
  Program program(description.input(), description.dtype());
  size_t value = 0;
  for (const size_t i : c10::irange(subnetwork.blocks.size())) {
    const auto& block = description.blocks()[subnetwork.blocks[i]];
    Lowering to(program, names, block.name, block.block, subnetwork.fits[i],
                subnetwork.places[i].data());
    value = block.block->lower(to, value);
    const Shape expected = kept_shape(subnetwork.fits[i].output.layout);
    TORCH_CHECK_VALUE(value <= program.steps().size() && program.shape_of(value) == expected,
                      "nsn::lower: block '", block.name, "' (", block.block->type(),
                      ") must return a value of shape ", to_string(expected),
                      ", as its fit says, but returns value ", value, " of ",
                      program.steps().size() + 1, ". Change its `lower`.");
  }
  program.returns(value);
  return program;
}

}  // namespace nsn
