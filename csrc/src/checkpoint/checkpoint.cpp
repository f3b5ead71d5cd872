#include "nsn/checkpoint/checkpoint.h"

#include <c10/util/Exception.h>

#include <memory>
#include <set>
#include <utility>

namespace nsn {

void save(const Network& net, const std::string& path, const Metadata& metadata) {
  net->parameter_table().check_loaded();
  std::set<std::string> known;
  for (const std::string& name : net->description().parameter_names()) known.insert(name);
  const auto check_known = [&](const std::string& name) {
    TORCH_CHECK_VALUE(known.count(name) > 0, "nsn::save: '", name,
                      "' is no parameter of the network's description, so that a checkpoint would "
                      "lack it. Keep it beside the network rather than in it, or use torch::save.");
  };
  for (const auto& each : net->named_parameters()) check_known(each.key());
  for (const auto& each : net->named_buffers()) check_known(each.key());
  write_checkpoint(net->description(), net->parameter_table(), path, metadata);
}

Network load(const std::string& path, const Supplied& supplied) {
  Checkpoint checkpoint = read_checkpoint(path, supplied);
  return Network(std::make_shared<NetworkImpl>(std::move(checkpoint.description),
                                               std::move(checkpoint.parameters),
                                               std::move(checkpoint.report)));
}

Network load_only(const std::string& path, const std::string& subnetwork,
                  const Supplied& supplied) {
  Checkpoint checkpoint = read_checkpoint(path, supplied, subnetwork);
  return Network(std::make_shared<NetworkImpl>(std::move(checkpoint.description),
                                               std::move(checkpoint.parameters),
                                               std::move(checkpoint.report)));
}

void load_rest(const Network& net, const std::string& path, const std::optional<std::string>& only,
               const Supplied& supplied) {
  LoadReport report = net->load_report();
  read_rest(net->description(), net->parameter_table(), report, path, only, supplied);
  net.ptr()->set_load_report(std::move(report));
}

}  // namespace nsn
