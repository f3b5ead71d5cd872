#include "nsn/network/parameter_table.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <utility>

namespace nsn {

ParameterTable::ParameterTable(std::shared_ptr<const Core> core, std::vector<at::Tensor> tensors,
                               LoadReport report, Current current)
    : core_(std::move(core)),
      tensors_(std::move(tensors)),
      report_(std::move(report)),
      current_(std::move(current)) {
  description().check_count(tensors_);
  for (const size_t place : c10::irange(tensors_.size())) {
    if (tensors_[place].defined()) description().parameters()[place].check(tensors_[place]);
  }
}

std::vector<size_t> ParameterTable::places_of(const std::vector<std::string>& subnetworks) const {
  const std::vector<std::string> all =
      subnetworks.empty() ? description().names() : std::vector<std::string>();
  const std::vector<std::string>& wanted = subnetworks.empty() ? all : subnetworks;
  std::vector<size_t> result;
  for (const std::string& name : wanted) {
    const size_t place = description().index_of(name);
    TORCH_CHECK_VALUE(std::find(result.begin(), result.end(), place) == result.end(),
                      "nsn::Network: sub-network '", name, "' is asked for twice. Name it once.");
    result.push_back(place);
  }
  // Asked in every pass: names are gathered where there is something to say.
  if (!report_.missing.empty()) report_.check_loaded(wanted, description().names());
  return result;
}

void ParameterTable::check_loaded() const { places_of({}); }

void ParameterTable::check_whole() const {
  for (const size_t place : c10::irange(tensors_.size())) {
    description().parameters()[place].check(tensors_[place]);
  }
}

ParameterTable ParameterTable::for_inference(const std::vector<size_t>& subnetworks,
                                             bool copies_modules) const {
  std::vector<at::Tensor> read(tensors_.size());
  for (const size_t s : subnetworks) {
    const auto subnetwork = description().subnetwork(s);
    for (const auto& places : subnetwork->places) {
      for (const ParameterPlace& at : places) {
        read[at.place] = tensors_[at.place].detach();
        // Whether other sub-networks' statistics were made is known from their counters.
        if (!at.is_private || !description().parameters()[at.place].counts_batches) continue;
        for (const size_t other : description().siblings_of(at.place)) {
          read[other] = tensors_[other].detach();
        }
      }
    }
  }
  const auto& blocks = description().blocks();
  const bool has_modules = std::any_of(blocks.begin(), blocks.end(), [](const auto& block) {
    return block.block->module() != nullptr;
  });
  auto core = core_;
  if (has_modules) {
    core = std::make_shared<const Core>(description().with_blocks([&](const Block& block) {
      if (!copies_modules) return block.evaluator();
      const BlockPtr copy = block.copy();
      return copy ? copy->evaluator() : nullptr;
    }));
  }
  return {std::move(core), std::move(read), report_, current_};
}

ParameterTable ParameterTable::at_moment(std::vector<at::Tensor> tensors) const {
  return {core_, std::move(tensors), report_, current_};
}

std::vector<at::Tensor> ParameterTable::now() const {
  return current_ ? current_() : std::vector<at::Tensor>();
}

}  // namespace nsn
