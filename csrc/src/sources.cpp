#include "sources.h"

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
