#include "nsn/network/teach.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <cmath>
#include <utility>
#include <vector>

#include "description/subnetworks.h"

namespace nsn::teach {

Teacher::Teacher(Kind kind, const Description& description, at::Tensor output)
    : kind_(kind),
      description_(std::make_shared<const Description>(description)),
      output_(std::move(output)) {
  const bool is_outside = kind == Kind::kOutside;
  TORCH_CHECK_VALUE(output_.defined() == is_outside, "nsn::teach::", name(),
                    is_outside ? ": the teacher's output is missing. Give it."
                               : ": the teachers are of the pass, and no output is taken. Leave it "
                                 "out, or teach by outside.");
}

Teacher& Teacher::weight(double weight) {
  TORCH_CHECK_VALUE(weight >= 0.0 && weight <= 1.0, "nsn::teach::", name(),
                    ": a weight is the share of the loss that is the teacher's, from 0 to 1, but "
                    "is ",
                    weight, ".");
  weight_ = weight;
  return *this;
}

Teacher& Teacher::weight(const std::string& subnetwork, double weight) {
  const double others = weight_;
  this->weight(weight);
  weight_ = others;
  const merge::Lane own = lane_of(subnetwork);
  bool is_largest = true;
  for (const size_t s : c10::irange(description_->subnetworks().size())) {
    is_largest = is_largest && !own.is_smaller_than(description_->lane(s));
  }
  // The largest cell of a grid is often base's twin.
  if (description_->grid().size() > 0) {
    is_largest = is_largest && !own.is_smaller_than(description_->lane(description_->places() - 1));
  }
  TORCH_CHECK_VALUE(!(kind_ == Kind::kBase && subnetwork == detail::kBase) &&
                        !(kind_ == Kind::kNextLarger && is_largest),
                    "nsn::teach::", name(), ": '", subnetwork,
                    "' has a weight, but teaches and never learns here. Leave it out.");
  weights_[subnetwork] = weight;
  return *this;
}

Teacher& Teacher::temperature(double temperature) {
  TORCH_CHECK_VALUE(temperature > 0.0 && std::isfinite(temperature), "nsn::teach::", name(),
                    ": the temperature must be positive and finite, but is ", temperature, ".");
  temperature_ = temperature;
  return *this;
}

Teacher& Teacher::by(Distance distance) {
  distance_ = distance;
  return *this;
}

const char* Teacher::name() const noexcept {
  switch (kind_) {
    case Kind::kBase:
      return "base";
    case Kind::kNextLarger:
      return "next_larger";
    case Kind::kMutual:
      return "mutual";
    case Kind::kOutside:
      break;
  }
  return "outside";
}

double Teacher::weight_of(const std::string& subnetwork) const {
  const auto own = weights_.find(subnetwork);
  return own == weights_.end() ? weight_ : own->second;
}

merge::Lane Teacher::lane_of(const std::string& subnetwork) const {
  const auto place = description_->find(subnetwork);
  TORCH_CHECK_VALUE(place, "nsn::teach::", name(), ": the network has no sub-network '", subnetwork,
                    "'. They are ", detail::names_in(*description_), ".");
  return description_->lane(*place);
}

Teacher base(const Description& description) { return {Kind::kBase, description}; }

Teacher next_larger(const Description& description) { return {Kind::kNextLarger, description}; }

Teacher mutual(const Description& description) { return {Kind::kMutual, description}; }

Teacher outside(const Description& description, const at::Tensor& output) {
  TORCH_CHECK_VALUE(output.defined() && at::isFloatingType(output.scalar_type()),
                    "nsn::teach::outside: the teacher's output must be a floating tensor, its "
                    "logits or its numbers. Give that.");
  return {Kind::kOutside, description, output.detach()};
}

Teacher outside(const Description& description,
                const std::function<at::Tensor(const at::Tensor&)>& teacher, const at::Tensor& x) {
  TORCH_CHECK_VALUE(teacher != nullptr,
                    "nsn::teach::outside: the teacher is an empty function. Give a module's, or "
                    "its output.");
  const at::NoGradGuard no_grad;
  return outside(description, teacher(x));
}

}  // namespace nsn::teach
