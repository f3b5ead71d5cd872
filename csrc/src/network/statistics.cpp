// Running statistics: made anew, evaluated by only where they were made.

#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>

#include "nsn/network/core.h"

namespace nsn {

void Core::calibrate(at::TensorList parameters, const at::Tensor& x,
                     c10::ArrayRef<size_t> subnetworks) const {
  const at::NoGradGuard no_grad;
  run(parameters, x, passages_of(subnetworks), {/*training=*/false, /*calibrating=*/true});
}

std::vector<at::Tensor> Core::start_statistics(at::TensorList parameters,
                                               c10::ArrayRef<size_t> subnetworks) const {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> result = parameters.vec();
  bool found = false;
  for (const size_t s : subnetworks) {
    const auto held = description_.subnetwork(s);
    const auto& subnetwork = *held;
    for (const size_t i : c10::irange(subnetwork.blocks.size())) {
      const auto& block = description_.blocks()[subnetwork.blocks[i]];
      if (block.block->module()) continue;  // keeps its statistics by itself
      const auto& places = subnetwork.places[i];
      const bool counts = std::any_of(places.begin(), places.end(), [&](const auto& place) {
        return description_.parameters()[place.place].counts_batches;
      });
      if (!counts) continue;
      found = true;
      for (const ParameterPlace& at : places) {
        const auto& parameter = description_.parameters()[at.place];
        at::Tensor& own = result[at.place];
        if (!parameter.is_buffer || !own.is_same(parameters[at.place])) continue;
        own = own.clone();
        if (parameter.counts_batches) own.zero_();
      }
    }
  }
  TORCH_CHECK_VALUE(found,
                    "nsn::recalibrate: the network has no running statistics. Only BatchNorm "
                    "has.");
  return result;
}

void Core::take_statistics(at::TensorList parameters, at::TensorList made) const {
  const at::NoGradGuard no_grad;
  for (const size_t place : c10::irange(made.size())) {
    if (!made[place].is_same(parameters[place])) parameters[place].copy_(made[place]);
  }
}

/// A network that was never trained evaluates by the statistics it starts with, as torch's modules
/// do: refused are those that were never made while other sub-networks' were.
void Core::check_statistics(at::TensorList parameters, const LanePass& lane, size_t place) const {
  const auto is_made = [&](size_t at) {
    return parameters[at].defined() && !parameters[at].is_meta() &&
           parameters[at].item<double>() > 0.0;
  };
  const auto& specs = description_.blocks()[place].parameters;
  for (const size_t p : c10::irange(specs.size())) {
    if (!specs[p].counts_batches || !specs[p].per_subnetwork) continue;
    const size_t own = lane.parameters[p].place;
    if (is_made(own)) continue;
    for (const size_t other : description_.siblings_of(own)) {
      TORCH_CHECK_VALUE(!is_made(other), "nsn::Network: the running statistics '",
                        description_.parameters()[own].name, "' were never made for sub-network '",
                        lane.lane.name, "', while those of others were ('",
                        description_.parameters()[other].name,
                        "'), so it cannot be evaluated. Train it too, or make them: "
                        "recalibrate with some batches.");
    }
  }
}

void Core::check_statistics(at::TensorList parameters, c10::ArrayRef<size_t> subnetworks) const {
  for (const size_t s : subnetworks) {
    const PassagePtr own = passage_of(s);
    const auto& blocks = own->subnetwork->blocks;
    for (const size_t i : c10::irange(blocks.size())) {
      check_statistics(parameters, own->blocks[i], blocks[i]);
    }
  }
}

}  // namespace nsn
