#include "functional/sources.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>

namespace nsn::detail {

std::vector<Source> sources_of(const functional::SharedLanes& lanes) {
  std::vector<Source> sources;
  const auto& slices = lanes.slices;
  for (const size_t lane : c10::irange(lanes.lanes.size())) {
    const auto serves = [&](const Source& each) {
      const size_t other = each.widest;
      const bool same_input =
          lanes.same_as.empty() ? lane == other : lanes.same_as[lane] == lanes.same_as[other];
      return same_input && (slices.empty() || slices[lane] == slices[other] ||
                            (slices[lane][0].is_leading() && slices[other][0].is_leading()));
    };
    auto source = std::find_if(sources.begin(), sources.end(), serves);
    if (source == sources.end()) source = sources.insert(source, Source{{}, lane});
    source->lanes.push_back(lane);
    if (!slices.empty() && slices[lane][0].kept() > slices[source->widest][0].kept()) {
      source->widest = lane;
    }
  }
  return sources;
}

ProductOperands checked_operands(at::TensorList inputs, const at::Tensor& weight,
                                 const at::Tensor& bias, const functional::SharedLanes& lanes,
                                 int64_t dims, int64_t channel_dim, const char* operation) {
  const size_t count = lanes.lanes.size();
  TORCH_CHECK_VALUE(count >= 1, operation, ": expected at least one lane, but got none. Name one.");
  TORCH_CHECK_VALUE(inputs.size() == count, operation,
                    ": expected one input for each lane, but got ", inputs.size(), " inputs and ",
                    count, " lanes. Give one for each.");
  TORCH_CHECK_VALUE(
      weight.defined() && weight.dim() == dims && weight.numel() > 0, operation,
      ": the weight must have ", dims, " dimensions and no empty one, but ",
      weight.defined() ? "has shape " + to_string(weight.sizes().vec()) : "is undefined",
      ". Give (out, in, ...).");
  TORCH_CHECK_VALUE(!at::isComplexType(weight.scalar_type()), operation,
                    ": complex weights are not supported, but the weight has dtype ",
                    weight.scalar_type(), ". Use real ones, or share() with torch's operations.");
  TORCH_CHECK_VALUE(!bias.defined() || (bias.dim() == 1 && bias.size(0) == weight.size(0)),
                    operation, ": the bias must have shape (", weight.size(0),
                    "), the weight's rows, but has ",
                    bias.defined() ? to_string(bias.sizes().vec()) : "", ". Give that shape.");
  TORCH_CHECK_VALUE(lanes.slices.empty() || lanes.slices.size() == count, operation,
                    ": expected one slice for each lane or none, but got ", lanes.slices.size(),
                    " slices and ", count, " lanes.");
  TORCH_CHECK_VALUE(lanes.same_as.empty() || lanes.same_as.size() == count, operation,
                    ": same_as must name a lane for each lane or none, but names ",
                    lanes.same_as.size(), " for ", count, " lanes.");
  ProductOperands result{{}, weight.resolve_neg(), bias.defined() ? bias.resolve_neg() : bias};
  for (const size_t lane : c10::irange(count)) {
    int64_t in = weight.size(1);
    if (!lanes.slices.empty()) {
      const Layout& slice = lanes.slices[lane];
      TORCH_CHECK_VALUE(full_shape(slice) == weight.sizes().vec(), operation, ": slice ", lane,
                        " is one of a tensor of shape ", to_string(full_shape(slice)),
                        ", but the weight has ", to_string(weight.sizes().vec()),
                        ". Give an axis for each of its dimensions.");
      in = slice[1].kept();
    }
    if (!lanes.same_as.empty()) {
      const size_t first = lanes.same_as[lane];
      TORCH_CHECK_VALUE(first <= lane && lanes.same_as[first] == first, operation, ": same_as[",
                        lane, "] must be the first lane of the same input, but is ", first, ".");
    }
    const at::Tensor& x = inputs[lane];
    const bool fits = x.defined() && x.dim() >= 1 && (channel_dim < 0 || x.dim() == dims) &&
                      x.size(channel_dim) == in;
    TORCH_CHECK_VALUE(
        fits, operation, ": input ", lane, " must have ", in,
        channel_dim < 0 ? " features, in its last dimension" : " channels, in its dimension 1",
        ", but ", x.defined() ? "has shape " + to_string(x.sizes().vec()) : "is undefined",
        ". Give what the lane keeps of the weight.");
    result.inputs.push_back(x.resolve_neg());
  }
  return result;
}

LaneViews views_of(const at::Tensor& weight, const functional::SharedLanes& lanes,
                   const char* operation) {
  const size_t count = lanes.lanes.size();
  const Shape shape = weight.sizes().vec();
  if (lanes.slices.empty()) {
    return {{shape, std::vector<Shape>(count, shape)},
            {{shape[0]}, std::vector<Shape>(count, Shape{shape[0]})},
            std::vector<Shape>(count, shape)};
  }
  std::vector<Layout> rows;
  LaneViews result;
  for (const Layout& slice : lanes.slices) {
    rows.push_back({slice[0]});
    result.kept.push_back(kept_shape(slice));
  }
  std::vector<const Layout*> weights, biases;
  for (const size_t lane : c10::irange(count)) {
    weights.push_back(&lanes.slices[lane]);
    biases.push_back(&rows[lane]);
  }
  auto weight_view = common_view(weights), bias_view = common_view(biases);
  TORCH_CHECK_VALUE(weight_view && bias_view, operation,
                    ": the lanes' slices do not fit one view of the weight of shape ",
                    weight.sizes(), ".");
  result.weight = std::move(*weight_view);
  result.bias = std::move(*bias_view);
  return result;
}

}  // namespace nsn::detail
