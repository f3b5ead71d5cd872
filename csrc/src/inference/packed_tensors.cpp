#include "inference/packed_tensors.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <utility>

#include "blocks/slices.h"
#include "inference/evaluate.h"
#include "values/regions.h"

namespace nsn::detail {

namespace {

bool is_leading(const Layout& slice) {
  return std::all_of(slice.begin(), slice.end(),
                     [](const Axis& axis) { return axis.is_leading(); });
}

/// A weight as (taps, in, out).
at::Tensor in_taps(const at::Tensor& weight, bool outputs_first) {
  const at::Tensor taps = weight.flatten(2);  // (out, in, taps), or (in, out, taps)
  return outputs_first ? taps.permute({2, 1, 0}) : taps.permute({2, 0, 1});
}

Operands operands_of(const Step& step, at::TensorList table) {
  Operands operands;
  for (const Operand& operand : step.operands) {
    operands[operand.role] = slice_of(table[operand.place], operand.slice);
  }
  return operands;
}

}  // namespace

Shape PackedTensors::Copy::shape() const {
  return form == PackedForm::kFolded ? plain.sizes().vec() : kept_shape(slice);
}

int64_t PackedTensors::Copy::bytes() const {
  return panels ? panels->nbytes() : static_cast<int64_t>(plain.nbytes());
}

size_t PackedTensors::copy_of(const std::string& key, const std::function<Copy()>& make) {
  const auto [found, is_new] = places_.try_emplace(key, copies_.size());
  if (is_new) copies_.push_back(make());
  return found->second;
}

const PackedSlice* PackedTensors::use(size_t copy, Shape kept) {
  uses_.push_back({copy, std::move(kept)});
  return &uses_.back();
}

const PackedSlice* PackedTensors::read(const Operand& operand, PackedForm form, size_t subnetwork) {
  const bool widens = is_leading(operand.slice) && form != PackedForm::kExact;
  const std::string key = std::to_string(operand.place) + '/' +
                          std::to_string(static_cast<int>(form)) + '/' +
                          (widens ? "" : to_string(operand.slice));
  const size_t place = copy_of(key, [&] { return Copy{operand.place, form, {}, operand.slice}; });
  Copy& copy = copies_[place];
  copy.users.insert(subnetwork);
  for (const size_t i : c10::irange(operand.slice.size())) {
    if (widens && operand.slice[i].kept() > copy.slice[i].kept()) copy.slice[i] = operand.slice[i];
  }
  return use(place, kept_shape(operand.slice));
}

const PackedSlice* PackedTensors::read_folded(const Operand* bias,
                                              const std::vector<const Step*>& steps,
                                              size_t subnetwork) {
  // Parts may be private where others are not, and the other way round.
  std::string key = "folded";
  const Operand* named = bias;  // whose name the copy has
  const auto add = [&](const Operand& operand) {
    key += '/' + std::to_string(operand.place) + ' ' + to_string(operand.slice);
  };
  if (bias != nullptr) add(*bias);
  for (const Step* step : steps) {
    key += std::string("/") + name_of(step->primitive);
    for (const Operand& operand : step->operands) add(operand);
    const Operand* mean = step->operand("running_mean");
    if (mean != nullptr && (named == nullptr || named == bias)) named = mean;
    if (named == nullptr && !step->operands.empty()) named = &step->operands.front();
  }
  const size_t place = copy_of(
      key, [&] { return Copy{named->place, PackedForm::kFolded, {}, named->slice, bias, steps}; });
  copies_[place].users.insert(subnetwork);
  return use(place, {2, kept_shape(copies_[place].slice)[0]});
}

bool PackedTensors::is_panels(size_t copy) const {
  const PackedForm form = copies_[copy].form;
  return form == PackedForm::kProduct || form == PackedForm::kConvolution;
}

at::Tensor PackedTensors::whole(size_t place, at::TensorList table) const {
  const Copy& copy = copies_[place];
  const at::Tensor slice = slice_of(table[copy.place], copy.slice);
  switch (copy.form) {
    case PackedForm::kFolded: {
      at::Tensor both;
      if (copy.bias != nullptr) {
        const at::Tensor bias = slice_of(table[copy.bias->place], copy.bias->slice).to(at::kDouble);
        both = at::stack({at::ones_like(bias), bias});
      }
      for (const Step* step : copy.folded) {
        const at::Tensor own = fold(*step, operands_of(*step, table));
        if (both.defined()) {
          both = both * own[0];
          both[1] += own[1];
        } else {
          both = own;
        }
      }
      return both.to(slice.scalar_type());
    }
    case PackedForm::kTaps:
    case PackedForm::kTapsTransposed:
      return in_taps(slice, copy.form == PackedForm::kTaps);
    default:
      return slice;
  }
}

void PackedTensors::fill(at::TensorList table) {
  for (const size_t i : c10::irange(copies_.size())) {
    Copy& copy = copies_[i];
    const at::Tensor all = whole(i, table);
    if (is_panels(i)) {
      copy.panels.emplace(all);
    } else {
      copy.plain = all.clone(at::MemoryFormat::Contiguous);
    }
    // Steps and their operands are gone by the time that somebody could read them.
    copy.bias = nullptr;
    copy.folded.clear();
  }
  for (PackedSlice& use : uses_) {
    const Copy& copy = copies_[use.copy];
    if (copy.panels) {
      use.panels = copy.panels->leading(use.kept[0], use.kept[1]);
    } else if (copy.form == PackedForm::kTaps || copy.form == PackedForm::kTapsTransposed) {
      use.plain = copy.plain;
    } else {
      use.plain = merge::leading(copy.plain, use.kept);
    }
  }
  for (const auto& then : then_) then();
  then_.clear();
}

std::vector<Pack::Entry> PackedTensors::entries(const Description& description) const {
  const auto form = [](const Copy& copy) {
    switch (copy.form) {
      case PackedForm::kProduct:
        return "product";
      case PackedForm::kConvolution:
        return "convolution";
      case PackedForm::kTaps:
      case PackedForm::kTapsTransposed:
        return "taps";
      case PackedForm::kFolded:
        return "folded";
      default:
        return "copy";
    }
  };
  std::vector<const Copy*> copies;
  for (const Copy& copy : copies_) copies.push_back(&copy);
  std::stable_sort(copies.begin(), copies.end(),
                   [](const Copy* a, const Copy* b) { return a->place < b->place; });
  std::vector<Pack::Entry> result;
  for (const Copy* copy : copies) {
    std::vector<std::string> users;
    for (const size_t user : copy->users) users.push_back(description.name(user));
    result.push_back({description.parameters()[copy->place].name, copy->shape(), form(*copy),
                      copy->bytes(), std::move(users)});
  }
  return result;
}

}  // namespace nsn::detail
