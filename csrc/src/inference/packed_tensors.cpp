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

const PackedSlice* PackedTensors::read(const Operand& operand, PackedForm form, size_t subnetwork) {
  const bool widens = is_leading(operand.slice) && form != PackedForm::kExact;
  const std::string key = std::to_string(operand.place) + '/' +
                          std::to_string(static_cast<int>(form)) + '/' +
                          (widens ? "" : to_string(operand.slice));
  auto& copy = copies_[key];
  if (!copy) copy = std::make_unique<Copy>(Copy{operand.place, form, {}, operand.slice});
  copy->users.insert(subnetwork);
  for (const size_t i : c10::irange(operand.slice.size())) {
    if (widens && operand.slice[i].kept() > copy->slice[i].kept()) {
      copy->slice[i] = operand.slice[i];
    }
  }
  uses_.push_back({copy.get(), kept_shape(operand.slice), {}});
  return &uses_.back().slice;
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
  auto& copy = copies_[key];
  if (!copy) {
    copy = std::make_unique<Copy>(
        Copy{named->place, PackedForm::kFolded, {}, named->slice, bias, steps});
  }
  copy->users.insert(subnetwork);
  uses_.push_back({copy.get(), {2, kept_shape(copy->slice)[0]}, {}});
  return &uses_.back().slice;
}

void PackedTensors::fill(Copy& copy, at::TensorList table) {
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
      copy.plain = both.to(slice.scalar_type());
      copy.bias = nullptr;
      copy.folded.clear();
      return;
    }
    case PackedForm::kProduct:
    case PackedForm::kConvolution:
      copy.panels.emplace(slice);
      return;
    case PackedForm::kTaps:
    case PackedForm::kTapsTransposed:
      copy.plain = in_taps(slice, copy.form == PackedForm::kTaps).contiguous();
      return;
    default:
      copy.plain = slice.clone(at::MemoryFormat::Contiguous);
  }
}

void PackedTensors::fill(at::TensorList table) {
  for (const auto& [key, copy] : copies_) {
    static_cast<void>(key);
    fill(*copy, table);
  }
  for (Use& use : uses_) {
    const PackedForm form = use.copy->form;
    if (use.copy->panels) {
      use.slice.panels = use.copy->panels->leading(use.kept[0], use.kept[1]);
    } else if (form == PackedForm::kTaps || form == PackedForm::kTapsTransposed) {
      use.slice.plain = use.copy->plain;
    } else {
      use.slice.plain = merge::leading(use.copy->plain, use.kept);
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
  for (const auto& [key, copy] : copies_) {
    static_cast<void>(key);
    copies.push_back(copy.get());
  }
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
