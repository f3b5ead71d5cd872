#include "nsn/network/recalibrate.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

namespace nsn {

void recalibrate(const Network& net, const std::vector<at::Tensor>& batches,
                 const std::vector<std::string>& names) {
  TORCH_CHECK_VALUE(!batches.empty(),
                    "nsn::recalibrate: there are no batches. Give some of the training data.");
  std::vector<size_t> subnetworks;
  for (const std::string& name : names.empty() ? net->description().names() : names) {
    subnetworks.push_back(net->description().index_of(name));
  }
  net->check_loaded(subnetworks);
  // Aside, so that batches that do not fit leave the old statistics as they are.
  const auto made = net->core().start_statistics(net->parameter_table(), subnetworks);
  for (const at::Tensor& batch : batches) net->core().calibrate(made, batch, subnetworks);
  net->core().take_statistics(net->parameter_table(), made);
}

}  // namespace nsn
