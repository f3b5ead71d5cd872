#include "blocks/affine.h"

#include <ATen/core/grad_mode.h>

#include <string>

#include "blocks/support.h"

namespace nsn::detail {

std::vector<ParameterSpec> affine(int64_t features, bool has_bias, const Parts& own) {
  const bool is_private = own.count("affine") > 0;
  std::vector<ParameterSpec> result{{"weight", {features}, /*decays=*/false, is_private}};
  if (has_bias) result.push_back({"bias", {features}, /*decays=*/false, is_private});
  return result;
}

std::vector<Operand> affine_operands(Lowering& to, size_t count) {
  std::vector<Operand> result;
  if (count > 0) result.push_back(to.operand(0, "weight"));
  if (count > 1) result.push_back(to.operand(1, "bias"));
  return result;
}

void start_affine(at::TensorList parameters, bool has_bias) {
  const at::NoGradGuard no_grad;
  parameters[0].fill_(1.0);
  if (has_bias) parameters[1].zero_();
}

Fit fit_first(const Signal& input, const BlockUse& use, int64_t features, size_t parameters,
              const char* name) {
  const auto axis = input.layout.empty() || input.is_integral
                        ? std::nullopt
                        : reads(input.layout.front(), features);
  if (!axis) misfit("floating (" + std::to_string(features) + ", *), its " + name, input);
  return {use, input, input, std::vector<Layout>(parameters, Layout{*axis}), 0, {}};
}

}  // namespace nsn::detail
