#include "inference/packed_tensors.h"

#include <c10/util/irange.h>

#include <algorithm>
#include <utility>

#include "blocks/slices.h"
#include "inference/evaluate.h"
#include "operations/kernels_for.h"
#include "values/regions.h"

namespace nsn::detail {

namespace {

bool is_leading(const Layout& slice) {
  return std::all_of(slice.begin(), slice.end(),
                     [](const Axis& axis) { return axis.is_leading(); });
}

bool multiplies(PackedForm form) {
  return form == PackedForm::kProduct || form == PackedForm::kConvolution;
}

}  // namespace

Shape PackedTensors::Copy::shape() const {
  return form == PackedForm::kNorm ? plain.sizes().vec() : kept_shape(slice);
}

int64_t PackedTensors::Copy::bytes() const {
  return panels ? panels->nbytes() : static_cast<int64_t>(plain.nbytes());
}

const PackedSlice* PackedTensors::read(const Operand& operand, PackedForm form, size_t subnetwork) {
  const bool leads = is_leading(operand.slice);
  const std::string key = std::to_string(operand.place) + '/' +
                          std::to_string(static_cast<int>(form)) + '/' +
                          (leads ? "" : to_string(operand.slice));
  auto& copy = copies_[key];
  if (!copy) copy = std::make_unique<Copy>(Copy{operand.place, form, {}, operand.slice});
  copy->users.insert(subnetwork);
  for (const size_t i : c10::irange(operand.slice.size())) {
    if (leads && operand.slice[i].kept() > copy->slice[i].kept()) {
      copy->slice[i] = operand.slice[i];
    }
  }
  uses_.push_back({copy.get(), kept_shape(operand.slice), {}});
  return &uses_.back().slice;
}

const PackedSlice* PackedTensors::read_norm(const Step& step, size_t subnetwork) {
  // Affine parts may be private where statistics are not, and the other way round.
  std::string key = "norm/" + to_string(step.operand("running_mean")->slice);
  for (const Operand& operand : step.operands) key += '/' + std::to_string(operand.place);
  auto& copy = copies_[key];
  if (!copy) {
    const Operand& mean = *step.operand("running_mean");
    copy = std::make_unique<Copy>(Copy{mean.place, PackedForm::kNorm, {}, mean.slice, &step});
  }
  copy->users.insert(subnetwork);
  uses_.push_back({copy.get(), {2, kept_shape(copy->slice)[0]}, {}});
  return &uses_.back().slice;
}

void PackedTensors::fill(Copy& copy, at::TensorList table) {
  if (copy.form == PackedForm::kNorm) {
    Operands operands;
    for (const Operand& operand : copy.norm->operands) {
      operands[operand.role] = slice_of(table[operand.place], operand.slice);
    }
    copy.plain = fold_batch_norm(std::get<primitives::BatchNorm>(copy.norm->primitive), operands);
    copy.norm = nullptr;
    return;
  }
  const at::Tensor slice = slice_of(table[copy.place], copy.slice);
  if (multiplies(copy.form) && has_kernels(slice)) {
    // One dimension as the second of two.
    copy.panels.emplace(slice.dim() == 3 ? slice.unsqueeze(2) : slice);
  } else {
    copy.plain = slice.clone(at::MemoryFormat::Contiguous);
  }
}

void PackedTensors::fill(at::TensorList table) {
  for (const auto& [key, copy] : copies_) {
    static_cast<void>(key);
    fill(*copy, table);
  }
  for (Use& use : uses_) {
    if (use.copy->panels) {
      use.slice = {{}, &*use.copy->panels, use.kept[0]};
    } else {
      use.slice.plain = merge::leading(use.copy->plain, use.kept);
    }
  }
  for (const auto& then : then_) then();
  then_.clear();
}

std::vector<Pack::Entry> PackedTensors::entries(const Description& description) const {
  const auto form = [](const Copy& copy) {
    if (copy.form == PackedForm::kNorm) return "norm";
    if (!copy.panels) return "copy";
    return copy.form == PackedForm::kProduct ? "product" : "convolution";
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
