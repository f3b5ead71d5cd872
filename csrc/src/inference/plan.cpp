#include "nsn/inference/plan.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>

#include "inference/planning.h"
#include "nsn/description/lower.h"
#include "values/json.h"

namespace nsn {

namespace {

plan::Plan plan_of(const Description& description, const std::string& subnetwork) {
  const Program program = lower(description, subnetwork);
  const auto& parameters = description.parameters();
  const bool is_float =
      parameters.empty() ||
      (std::any_of(parameters.begin(), parameters.end(),
                   [](const auto& each) { return at::isFloatingType(each.dtype); }) &&
       description.parameter_dtype() == at::kFloat);
  TORCH_CHECK_VALUE(is_float && detail::has_plan(program),
                    "nsn: plans have parameters of float32, and numbers that are embedded and "
                    "nothing else, but the network has parameters of ",
                    description.parameter_dtype(), " and an input of ", description.dtype(),
                    ". Look at its program instead, which packs run step by step.");
  detail::PackedTensors tensors;
  return detail::make_plan(program, description.index_of(subnetwork), tensors).plan;
}

}  // namespace

std::string plan_text(const Description& description, const std::string& subnetwork) {
  std::ostringstream text;
  text << plan_of(description, subnetwork);
  return text.str();
}

std::string plan_json(const Description& description, const std::string& subnetwork, int indent) {
  using detail::Json;
  constexpr auto kBytes = static_cast<int64_t>(sizeof(float));
  const plan::Plan plan = plan_of(description, subnetwork);
  Json steps = Json::array();
  for (const plan::Step& step : plan.steps) {
    const plan::Value& value = plan.values[step.output];
    steps.push_back({{"kernel", plan::name_of(step.kernel)},
                     {"block", step.block},
                     {"inputs", plan::read_by(step)},
                     {"attributes", plan::attributes_of(step.kernel)},
                     {"value", step.output},
                     {"shape", value.shape},
                     {"offset", value.memory == plan::Memory::kArena ? Json(kBytes * value.offset)
                                                                     : Json(nullptr)}});
  }
  return Json{{"steps", std::move(steps)},
              {"arena_bytes", kBytes * plan.arena},
              {"flops", static_cast<int64_t>(plan.flops)}}
      .dump(indent);
}

}  // namespace nsn
