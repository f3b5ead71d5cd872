#include "nsn/extract/blocks.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include "blocks/reading.h"
#include "blocks/slices.h"

namespace nsn {

std::string ExtractedBlock::document() const { return detail::write_block(name, *block).dump(); }

std::vector<ExtractedBlock> extract_blocks(const Description& description,
                                           const std::string& subnetwork) {
  const Description alone = description.alone(subnetwork);
  const auto held = description.subnetwork(subnetwork);
  const auto& kept = *held;
  std::vector<ExtractedBlock> result;
  for (const size_t i : c10::irange(kept.blocks.size())) {
    const auto& block = alone.blocks()[i];
    ExtractedBlock extracted{block.name, block.block, {}};
    for (const size_t p : c10::irange(block.parameters.size())) {
      const ParameterSpec& parameter = block.parameters[p];
      const ParameterPlace& place = kept.places[i][p];
      const Layout& slice = kept.fits[i].slices[p];
      TORCH_CHECK_VALUE(kept_shape(slice) == parameter.shape, "nsn::extract_blocks: block '",
                        block.name, "' (", block.block->type(), ") by itself wants a ",
                        parameter.name, " of shape ", to_string(parameter.shape),
                        ", but sub-network '", subnetwork, "' keeps ", to_string(slice),
                        " of it. Override Block::narrowed.");
      extracted.parameters.push_back({parameter.name, place.place,
                                      place.is_private ? whole(parameter.shape) : slice,
                                      parameter.is_buffer});
    }
    result.push_back(std::move(extracted));
  }
  return result;
}

at::Tensor extract_tensor(const at::Tensor& whole, const Layout& slice) {
  TORCH_CHECK_VALUE(whole.sizes() == at::IntArrayRef(full_shape(slice)),
                    "nsn::extract_tensor: expected a tensor of shape ",
                    to_string(full_shape(slice)), ", but got ", to_string(whole.sizes().vec()),
                    ". Give the parameter of the slice's place in the table.");
  return detail::slice_of(whole.detach(), slice).clone(at::MemoryFormat::Contiguous);
}

}  // namespace nsn
