#include "nsn/network/row_norms.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "description/subnetworks.h"

namespace nsn {

namespace {

/// Whether a parameter, by its name in the block, is a transposed convolution's, whose first
/// dimension is its inputs'.
bool is_transposed(const Block& block, const std::string& parameter) {
  if (block.type() == "ConvTranspose2d") return true;
  for (const InnerBlock& inner : block.inner()) {
    const std::string prefix = inner.name + ".";
    if (parameter.compare(0, prefix.size(), prefix) == 0) {
      return is_transposed(*inner.block, parameter.substr(prefix.size()));
    }
  }
  return false;
}

std::vector<std::string> names_of(const std::vector<Description::NamedBlock>& blocks) {
  std::vector<std::string> names;
  for (const auto& each : blocks) names.push_back(each.name);
  return names;
}

}  // namespace

void bound_row_norms(const ParameterTable& network, double most,
                     const std::vector<std::string>& blocks) {
  TORCH_CHECK_VALUE(most > 0.0 && std::isfinite(most),
                    "nsn::bound_row_norms: the bound must be positive and finite, but is ", most,
                    ".");
  const Description& description = network.description();
  std::vector<std::pair<at::Tensor, int64_t>> weights;  // and the dimension of its rows
  for (const std::string& name : blocks) {
    const auto& all = description.blocks();
    const auto block =
        std::find_if(all.begin(), all.end(), [&](const auto& each) { return each.name == name; });
    TORCH_CHECK_VALUE(block != all.end(), "nsn::bound_row_norms: the network has no block '", name,
                      "'. It has ", detail::quoted(names_of(all)), ".");
    const size_t before = weights.size(), place = static_cast<size_t>(block - all.begin());
    for (const size_t p : c10::irange(network.size())) {
      const auto& parameter = description.parameters()[p];
      if (parameter.block != place || !parameter.decays || !network[p].defined()) continue;
      TORCH_CHECK_VALUE(network[p].is_leaf(), "nsn::bound_row_norms: '", parameter.name,
                        "' is computed from another tensor (a parametrization), so that what is "
                        "done to it is forgotten. Bound it in the parametrization.");
      const auto& own = block->parameters[parameter.spec].name;
      weights.emplace_back(network[p], is_transposed(*block->block, own) ? 1 : 0);
    }
    TORCH_CHECK_VALUE(weights.size() > before, "nsn::bound_row_norms: block '", name,
                      "' has no weight of a product or convolution. Leave it out.");
  }
  const at::NoGradGuard no_grad;
  for (auto& [weight, rows] : weights) weight.renorm_(/*p=*/2, rows, most);
}

}  // namespace nsn
