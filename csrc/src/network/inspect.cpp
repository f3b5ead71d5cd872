// What a pass does with one parameter or block, told without one.

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <optional>

#include "blocks/slices.h"
#include "description/subnetworks.h"
#include "kernels/mix.h"
#include "nsn/functional/relu_dropout.h"
#include "nsn/network/core.h"
#include "values/regions.h"

namespace nsn {

at::Tensor Core::dropout_mask(uint64_t seed, const std::string& subnetwork,
                              const std::string& block, double probability,
                              at::IntArrayRef shape) const {
  const size_t s = description_.index_of(subnetwork);
  const PassagePtr own = passage_of(s);
  const auto& blocks = own->subnetwork->blocks;
  const std::string top = block.substr(0, block.find('.'));
  for (const size_t i : c10::irange(blocks.size())) {
    const auto& described = description_.blocks()[blocks[i]];
    if (described.name != top) continue;
    const Block* at = described.block.get();
    const LanePass& pass = own->blocks[i];
    const Fit* fit = pass.fit;
    uint64_t block_seed = detail::mix(seed, blocks[i]);
    uint64_t way = pass.output_way, before = pass.input_way;
    std::string rest = block.substr(std::min(block.size(), top.size() + 1));
    while (!rest.empty()) {
      const std::string name = rest.substr(0, rest.find('.'));
      size_t inner = 0;
      for (; inner < at->inner().size(); ++inner) {
        const Block& each = *at->inner()[inner].block;
        way = detail::next_way(before, inner, fit->inner[inner],
                               detail::has_private_parts(each.parameters()), s);
        if (at->inner()[inner].name == name) break;
        before = way;
      }
      TORCH_CHECK_VALUE(inner < at->inner().size(), "nsn::Core: there is no block '", block, "'.");
      block_seed = detail::mix(block_seed, inner);
      fit = &fit->inner[inner];
      at = at->inner()[inner].block.get();
      rest = rest.substr(std::min(rest.size(), name.size() + 1));
    }
    return functional::dropout_mask(shape, {probability, detail::mix(block_seed, way)});
  }
  TORCH_CHECK_VALUE(false, "nsn::Core: sub-network '", subnetwork, "' keeps no block '", block,
                    "'.");
}

std::vector<double> Core::merge_coefficients(const std::string& subnetwork) const {
  const size_t wanted = description_.index_of(subnetwork);
  const auto own = description_.subnetwork(wanted);
  std::vector<double> result;
  for (const size_t p : c10::irange(description_.parameters().size())) {
    const auto& parameter = description_.parameters()[p];
    const bool is_used = own->slice_of(p) != nullptr;
    if (!is_used || parameter.subnetwork || parameter.is_buffer) {
      // A private parameter's gradient is its sub-network's own.
      result.push_back(is_used ? 1.0 : 0.0);
      continue;
    }
    const auto& rule = description_.blocks()[parameter.block].rule;
    if (description_.grid().size() > 0) {
      TORCH_CHECK_VALUE(rule.name() == "sum", "nsn::Core: beside a grid others run with '",
                        subnetwork, "' in each step, so that its coefficients under rule '",
                        rule.name(), "' change. Leave out `of`, or use merge::sum().");
      result.push_back(1.0);
      continue;
    }
    const auto users = description_.users_of(p);
    const auto used = std::find_if(users.begin(), users.end(), [&](const Description::User& user) {
      return user.subnetwork == wanted;
    });
    std::vector<merge::Lane> lanes;
    std::vector<const Layout*> slices;
    for (const Description::User& user : users) {
      lanes.push_back(description_.lane(user.subnetwork));
      slices.push_back(user.slice);
    }
    const auto position = static_cast<size_t>(used - users.begin());
    const auto view = common_view(slices);
    std::optional<double> coefficient;
    for (const merge::Region& region : merge::regions(rule, lanes, view->slices, view->view)) {
      for (const size_t i : c10::irange(region.lanes.size())) {
        if (region.lanes[i] != position) continue;
        TORCH_CHECK_VALUE(!coefficient || *coefficient == region.coefficients[i],
                          "nsn::Core: in parameter '", parameter.name,
                          "' the coefficient of "
                          "sub-network '",
                          subnetwork, "' under rule '", rule.name(),
                          "' changes from where more sub-networks use it to where fewer do, so no "
                          "one number stands for it. Leave out `of`, or use merge::sum().");
        coefficient = region.coefficients[i];
      }
    }
    result.push_back(coefficient.value_or(0.0));
  }
  return result;
}

}  // namespace nsn
