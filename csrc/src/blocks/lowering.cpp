#include "nsn/blocks/lowering.h"

#include <memory>
#include <utility>

namespace nsn {

Lowering::Lowering(Program& program, c10::ArrayRef<std::string> names, std::string path,
                   BlockPtr block, const Fit& fit, const ParameterPlace* places)
    : program_(program),
      names_(names),
      path_(std::move(path)),
      block_(std::move(block)),
      fit_(fit),
      places_(places),
      specs_(block_->parameters()) {}

size_t Lowering::step(std::string part, Primitive primitive, std::vector<size_t> inputs,
                      std::vector<Operand> operands) {
  return program_.add(
      {path_, std::move(part), std::move(primitive), std::move(inputs), std::move(operands)});
}

Operand Lowering::operand(size_t p, std::string role) const {
  const ParameterPlace& at = places_[p];
  // A private parameter is as wide as its sub-network.
  Layout slice = at.is_private ? whole(kept_shape(fit_.slices[p])) : fit_.slices[p];
  return {std::move(role), names_[at.place], at.place, std::move(slice), specs_[p].is_buffer};
}

size_t Lowering::inner(size_t i, size_t first, size_t x) {
  const InnerBlock& own = block_->inner()[i];
  Lowering inside(program_, names_, path_ + "." + own.name, own.block, fit_.inner[i],
                  places_ + first);
  return own.block->lower(inside, x);
}

size_t Lowering::call(size_t x) {
  std::vector<Operand> operands;
  for (size_t p = 0; p < specs_.size(); ++p) operands.push_back(operand(p, specs_[p].name));
  primitives::Call call{block_->type(), block_->options_json(), block_,
                        std::make_shared<const Fit>(fit_)};
  return program_.add(
      {path_, "", std::move(call), {x}, std::move(operands), kept_shape(fit_.output.layout)});
}

size_t Block::lower(Lowering& to, size_t x) const { return to.call(x); }

}  // namespace nsn
