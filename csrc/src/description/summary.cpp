#include "nsn/description/summary.h"

#include <c10/util/accumulate.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <iomanip>
#include <ostream>

#include "blocks/support.h"

namespace nsn {

namespace {

using detail::saturating_add;
using detail::saturating_product;

/// How many elements two slices of one parameter have in common.
int64_t common_elements(const Layout& a, const Layout& b) {
  const auto view = common_view({&a, &b});
  int64_t product = 1;
  for (const size_t dim : c10::irange(view->view.size())) {
    product *= std::min(view->slices[0][dim], view->slices[1][dim]);
  }
  return product;
}

}  // namespace

std::vector<SubnetworkSummary> describe(const Description& description) {
  std::vector<SubnetworkSummary> result;
  for (const Description::Subnetwork& subnetwork : description.subnetworks()) {
    SubnetworkSummary summary{subnetwork.name,  {}, subnetwork.parameter_count, 0, 0,
                              subnetwork.flops, {}};
    for (const size_t i : c10::irange(subnetwork.blocks.size())) {
      const auto& block = description.blocks()[subnetwork.blocks[i]];
      const Fit& fit = subnetwork.fits[i];
      BlockSummary own{block.name, block.block->type(), {}, kept_shape(fit.output.layout), 0, 0,
                       fit.flops};
      for (const Dimension& dimension : block.block->dimensions()) {
        own.widths.push_back(
            {dimension.name, fit.use.width_of(dimension.name, dimension.full), dimension.full});
      }
      for (const size_t p : c10::irange(fit.slices.size())) {
        if (block.parameters[p].is_buffer) continue;
        const int64_t count = c10::multiply_integers(kept_shape(fit.slices[p]));
        own.parameters = saturating_add(own.parameters, count);
        if (block.parameters[p].per_subnetwork) {
          own.private_parameters = saturating_add(own.private_parameters, count);
        }
      }
      summary.blocks.push_back(std::move(own));
    }
    result.push_back(std::move(summary));
  }
  std::vector<std::vector<int64_t>> shared(result.size(), std::vector<int64_t>(result.size(), 0));
  for (const size_t p : c10::irange(description.parameters().size())) {
    const auto& parameter = description.parameters()[p];
    if (parameter.is_buffer) continue;
    const auto users = description.users_of(p);
    for (const Description::User& user : users) {
      const int64_t count = c10::multiply_integers(kept_shape(*user.slice));
      SubnetworkSummary& own = result[user.subnetwork];
      const auto size = static_cast<int64_t>(c10::elementSize(parameter.dtype));
      own.bytes = saturating_add(own.bytes, saturating_product({count, size}));
      if (users.size() == 1) own.private_parameters = saturating_add(own.private_parameters, count);
      for (const Description::User& other : users) {
        int64_t& common = shared[user.subnetwork][other.subnetwork];
        common = saturating_add(common, common_elements(*user.slice, *other.slice));
      }
    }
  }
  for (const size_t s : c10::irange(result.size())) {
    for (const size_t other : c10::irange(result.size())) {
      if (other != s) result[s].shared.emplace_back(result[other].name, shared[s][other]);
    }
  }
  return result;
}

std::ostream& operator<<(std::ostream& stream, const std::vector<SubnetworkSummary>& summaries) {
  for (const SubnetworkSummary& each : summaries) {
    stream << each.name << ": " << each.parameters << " parameters (" << each.private_parameters
           << " its own alone), " << each.bytes << " bytes, " << each.flops << " FLOPs a sample\n";
    for (const BlockSummary& block : each.blocks) {
      stream << "  " << block.name << " (" << block.type << ")";
      for (const BlockSummary::Width& width : block.widths) {
        stream << ' ' << width.name << ' ' << width.kept;
        if (width.kept != width.full) stream << " of " << width.full;
      }
      stream << " -> " << to_string(block.output) << ", " << block.parameters << " parameters, "
             << block.flops << " FLOPs\n";
    }
    for (const auto& [name, count] : each.shared) {
      stream << "  shares " << count << " with " << name << '\n';
    }
  }
  return stream;
}

}  // namespace nsn
