#include "nsn/network/recalibrate.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

namespace nsn {

void recalibrate(const Network& net, const std::vector<at::Tensor>& batches,
                 const std::vector<std::string>& names) {
  TORCH_CHECK_VALUE(!batches.empty(),
                    "nsn::recalibrate: there are no batches. Give some of the training data.");
  const ParameterTable table = net->parameter_table();
  const std::vector<size_t> subnetworks = table.places_of(names);
  // Aside, so that batches that do not fit leave the old statistics as they are.
  const auto made = table.core().start_statistics(table, subnetworks);
  for (const at::Tensor& batch : batches) table.core().calibrate(made, batch, subnetworks);
  table.core().take_statistics(table, made);
}

}  // namespace nsn
