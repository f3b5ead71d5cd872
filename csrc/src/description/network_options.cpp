#include <utility>

#include "nsn/description/description.h"

namespace nsn {

NetworkOptions& NetworkOptions::input(Shape shape, at::ScalarType dtype) {
  input_ = std::move(shape);
  dtype_ = dtype;
  return *this;
}

NetworkOptions& NetworkOptions::dtype(at::ScalarType parameters) {
  parameter_dtype_ = parameters;
  return *this;
}

NetworkOptions& NetworkOptions::block(std::string name, BlockPtr block,
                                      std::optional<merge::Rule> rule) {
  blocks_.push_back({std::move(name), std::move(block), std::move(rule)});
  return *this;
}

NetworkOptions& NetworkOptions::subnetwork(std::string name, SubnetworkOptions options) {
  subnetworks_.emplace_back(std::move(name), std::move(options));
  return *this;
}

NetworkOptions& NetworkOptions::axis(std::string name, Widths widths) {
  axes_.push_back({std::move(name), std::move(widths)});
  return *this;
}

NetworkOptions& NetworkOptions::axis(std::string name, Depths depths) {
  axes_.push_back({std::move(name), std::move(depths)});
  return *this;
}

NetworkOptions& NetworkOptions::merge(merge::Rule rule) {
  merge_ = std::move(rule);
  return *this;
}

}  // namespace nsn
