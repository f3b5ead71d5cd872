#include "nsn/block.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <cmath>
#include <sstream>

#include "nsn/functional.h"

namespace nsn {

std::vector<at::Tensor> Block::joint(at::TensorList inputs, at::TensorList parameters,
                                     const BlockPass& pass) const {
  std::vector<merge::Lane> lanes;
  for (const LanePass& lane : pass.lanes) lanes.push_back(lane.lane);
  // own[l] are lane l's parameters.
  std::vector<std::vector<at::Tensor>> own(lanes.size());
  for (const at::Tensor& parameter : parameters) {
    const std::vector<merge::Slice> whole(lanes.size(), parameter.sizes().vec());
    const auto shared = functional::share(parameter, whole, pass.rule, lanes);
    for (const size_t lane : c10::irange(lanes.size())) own[lane].push_back(shared[lane]);
  }
  std::vector<at::Tensor> outputs;
  for (const size_t lane : c10::irange(lanes.size())) {
    outputs.push_back(forward(inputs[lane], own[lane], pass.lanes[lane], pass));
  }
  return outputs;
}

void Block::initialize(at::TensorList parameters) const {
  const at::NoGradGuard no_grad;
  // The bound of torch::nn::Linear for weights and biases alike: 1 / sqrt(fan_in).
  double bound = 0.0;
  for (const at::Tensor& parameter : parameters) {
    if (parameter.dim() > 1) {
      const auto fan_in = static_cast<double>(parameter[0].numel());
      bound = 1.0 / std::sqrt(fan_in);
    }
    parameter.uniform_(-bound, bound);
  }
}

int64_t checked_numel(const Shape& shape, const std::string& what) {
  constexpr int64_t kMost = int64_t{1} << 60;
  int64_t numel = 1;
  for (const int64_t extent : shape) {
    TORCH_CHECK_VALUE(extent >= 1, "nsn: ", what, " must be at least 1, but got ", extent,
                      ". Give a positive size.");
    TORCH_CHECK_VALUE(extent <= kMost / numel, "nsn: ", what, " of shape ", to_string(shape),
                      " has more than 2^60 elements. Make it smaller.");
    numel *= extent;
  }
  return numel;
}

std::string to_string(const Shape& shape) {
  std::ostringstream stream;
  stream << '(';
  for (const size_t i : c10::irange(shape.size())) stream << (i > 0 ? ", " : "") << shape[i];
  stream << ')';
  return stream.str();
}

}  // namespace nsn
