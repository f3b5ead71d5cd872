#include "functional/linear_forward.h"

#include <ATen/ops/addmm.h>
#include <c10/util/irange.h>
#include <c10/util/strides.h>

#include <algorithm>
#include <map>
#include <utility>

#include "operations/elementwise.h"
#include "operations/lanes.h"
#include "operations/products.h"
#include "operations/workspace.h"
#include "values/regions.h"

namespace nsn::detail {

LinearSpec make_spec(const at::Tensor& weight, const functional::SharedLanes& of,
                     const functional::ReluDropout& after, const functional::Memory& memory) {
  auto views = views_of(weight, of, "nsn::linear");
  LinearSpec spec{of.lanes,
                  of.rule,
                  after,
                  false,
                  memory,
                  std::nullopt,
                  std::move(views.weight),
                  std::move(views.bias),
                  {},
                  {},
                  sources_of(of),
                  {},
                  {}};
  for (const Shape& kept : views.kept) {
    spec.out.push_back(kept[0]);
    spec.in.push_back(kept[1]);
  }
  spec.source_of.resize(of.lanes.size());
  for (const size_t source : c10::irange(spec.sources.size())) {
    for (const size_t lane : spec.sources[source].lanes) spec.source_of[lane] = source;
    const size_t widest = spec.sources[source].widest;
    auto stack = std::find_if(spec.stacks.begin(), spec.stacks.end(), [&](const Stack& each) {
      return of.slices.empty() || of.slices[spec.sources[each[0]].widest] == of.slices[widest];
    });
    if (stack == spec.stacks.end()) stack = spec.stacks.insert(stack, Stack{});
    stack->push_back(source);
  }
  return spec;
}

at::Tensor matrix_of(const LinearSpec& spec, const at::Tensor& weight, size_t lane) {
  return merge::slice_of_view(weight, spec.weight.view, spec.weight.slices[lane],
                              {spec.out[lane], spec.in[lane]});
}

at::Tensor bias_of(const LinearSpec& spec, const at::Tensor& bias, size_t lane) {
  if (!bias.defined() || bias.size(0) == spec.out[lane]) return bias;
  return merge::slice_of_view(bias, spec.bias.view, spec.bias.slices[lane], {spec.out[lane]});
}

at::Tensor cast(const at::Tensor& tensor, std::optional<at::ScalarType> dtype) {
  return dtype && tensor.defined() ? tensor.to(*dtype) : tensor;
}

namespace {

/// Lanes of one source that have one result, or the leading columns of it.
struct LaneElement {
  std::vector<size_t> lanes;
  size_t widest;
  size_t source;
};

/// What is left to do behind the product of one stack, which has one matrix a source.
class Finish {
 public:
  Finish(const LinearSpec& spec, const Stack& stack, const at::Tensor& product,
         const at::Tensor& bias, at::TensorList inputs, LinearForward& result, Masks* masks)
      : spec_(spec),
        stack_(stack),
        product_(product),
        bias_(bias),
        inputs_(inputs),
        result_(result),
        masks_(masks),
        columns_(product.size(1)) {}

  void run() const {
    if (spec_.gelu) {
      gelu();
    } else if (spec_.after.is_identity()) {
      for_each_lane([&](size_t lane, int64_t first) {
        result_.outputs[lane] = columns_of(product_, first, columns_, lane);
      });
    } else {
      relu_dropout();
    }
  }

 private:
  /// Calls `run(lane, first)`: its rows begin `first` elements behind the product's begin.
  template <typename Run>
  void for_each_lane(const Run& run) const {
    for (const size_t source : stack_) {
      const int64_t first = result_.rows[source].first * columns_;
      for (const size_t lane : spec_.sources[source].lanes) run(lane, first);
    }
  }

  std::vector<int64_t> sizes_of(size_t lane, int64_t width) const {
    std::vector<int64_t> sizes = inputs_[lane].sizes().vec();
    sizes.back() = width;
    return sizes;
  }
  /// The leading columns of `whole`, (*, width), that are `lane`'s.
  at::Tensor columns_of(const at::Tensor& whole, int64_t first, int64_t width, size_t lane) const {
    const auto sizes = sizes_of(lane, spec_.out[lane]);
    if (spec_.out[lane] == width) return part(whole, first, sizes);
    return part(whole, first, sizes, c10::contiguous_strides(sizes_of(lane, width)));
  }

  void gelu() const {
    const functional::Memory memory{spec_.memory.workspace,
                                    spec_.stacks.size() > 1 ? nullptr : spec_.memory.room};
    const at::Tensor y = empty_in(memory, product_.sizes(), product_.options());
    // The derivative takes the product's place.
    gelu_forward(product_, bias_, y, masks_ == nullptr ? at::Tensor() : product_);
    for_each_lane([&](size_t lane, int64_t first) {
      result_.outputs[lane] = columns_of(y, first, columns_, lane);
      if (masks_ != nullptr) masks_->outputs[lane] = columns_of(product_, first, columns_, lane);
    });
  }

  std::vector<LaneElement> elements(bool& in_place) const;
  void relu_dropout() const;
  void relu_dropout(const std::vector<const LaneElement*>& elements, int64_t width,
                    const functional::Memory& memory, bool in_place) const;

  const LinearSpec& spec_;
  const Stack& stack_;
  const at::Tensor& product_;
  const at::Tensor& bias_;
  at::TensorList inputs_;
  LinearForward& result_;
  Masks* masks_;
  int64_t columns_;
};

/// Without dropout narrower lanes have the leading columns of the widest; each mask is of one lane.
/// `in_place`: whether the results may take the product's place.
std::vector<LaneElement> Finish::elements(bool& in_place) const {
  std::vector<LaneElement> result;
  in_place = true;
  for (const size_t source : stack_) {
    const size_t before = result.size();
    for (const size_t lane : spec_.sources[source].lanes) {
      const bool drops = spec_.after.dropout[lane].probability > 0.0;
      auto element =
          std::find_if(result.begin() + static_cast<int64_t>(before), result.end(),
                       [&](const LaneElement& each) {
                         const size_t other = each.widest;
                         return drops ? spec_.after.same_as[lane] == spec_.after.same_as[other]
                                      : spec_.after.dropout[other].probability <= 0.0;
                       });
      if (element == result.end()) element = result.insert(element, LaneElement{{}, lane, source});
      element->lanes.push_back(lane);
      if (spec_.out[lane] > spec_.out[element->widest]) element->widest = lane;
    }
    in_place =
        in_place && result.size() == before + 1 && spec_.out[result.back().widest] == columns_;
  }
  return result;
}

void Finish::relu_dropout() const {
  bool in_place = false;
  const std::vector<LaneElement> all = elements(in_place);
  std::map<int64_t, std::vector<const LaneElement*>> of_width;
  for (const LaneElement& element : all) of_width[spec_.out[element.widest]].push_back(&element);
  functional::Memory memory = spec_.memory;
  if (of_width.size() > 1 || spec_.stacks.size() > 1) memory.room = nullptr;
  for (const auto& [width, own] : of_width) relu_dropout(own, width, memory, in_place);
}

/// Of elements of one width.
void Finish::relu_dropout(const std::vector<const LaneElement*>& elements, int64_t width,
                          const functional::Memory& memory, bool in_place) const {
  functional::ReluDropout options{spec_.after.relu, {}, {}};
  std::vector<at::Tensor> tensors;
  for (const LaneElement* element : elements) {
    options.same_as.push_back(tensors.size());
    options.dropout.push_back(spec_.after.dropout[element->widest]);
    tensors.push_back(columns_of(product_, result_.rows[element->source].first * columns_, columns_,
                                 element->widest));
  }
  Masks own;
  const at::Tensor own_bias = bias_.defined() ? bias_.narrow(0, 0, width) : bias_;
  const auto finished = relu_dropout_forward(tensors, own_bias, options, memory, in_place,
                                             masks_ == nullptr ? nullptr : &own);
  for (const size_t i : c10::irange(finished.size())) {
    for (const size_t lane : elements[i]->lanes) {
      result_.outputs[lane] = columns_of(finished[i], 0, width, lane);
      if (masks_ == nullptr) continue;
      masks_->scales[lane] = own.scales[i];
      if (spec_.out[lane] == width) {
        masks_->masks[lane] = own.masks[i];
      } else if (spec_.after.relu) {
        masks_->outputs[lane] = columns_of(finished[i], 0, width, lane);
      }
    }
  }
}

}  // namespace

LinearForward forward_of(const LinearSpec& spec, at::TensorList inputs,
                         const at::Tensor& given_weight, const at::Tensor& given_bias,
                         Masks* masks) {
  LinearForward result;
  result.weight = cast(given_weight, spec.autocast);
  result.outputs.resize(inputs.size());
  result.rows.resize(spec.sources.size());
  const bool element_wise = spec.gelu || !spec.after.is_identity();
  if (element_wise && masks != nullptr) {
    masks->masks.resize(inputs.size());
    masks->outputs.resize(inputs.size());
    masks->scales.resize(inputs.size());
    masks->workspace = spec.memory.workspace;
  }
  for (const size_t b : c10::irange(spec.stacks.size())) {
    Stack stack = spec.stacks[b];
    sort_as_laid(stack, [&](size_t source) { return inputs[spec.sources[source].lanes[0]]; });
    std::vector<at::Tensor> rows;
    int64_t total = 0;
    for (const size_t source : stack) {
      rows.push_back(as_rows(cast(inputs[spec.sources[source].lanes[0]], spec.autocast)));
      result.rows[source] = {b, total, rows.back().size(0)};
      total += rows.back().size(0);
    }
    result.stacked.push_back(stack_rows(rows));
    const at::Tensor& stacked = result.stacked.back();
    const size_t widest = spec.sources[stack[0]].widest;
    const at::Tensor weight = matrix_of(spec, result.weight, widest).t();
    const at::Tensor bias = bias_of(spec, cast(given_bias, spec.autocast), widest);
    // In a narrower dtype the product would be rounded before the bias is added.
    const auto dtype = stacked.scalar_type();
    const bool adds_bias_later = element_wise && (dtype == at::kFloat || dtype == at::kDouble);
    functional::Room* room = spec.stacks.size() > 1 ? nullptr : spec.memory.room;
    const at::Tensor product =
        empty_in({spec.memory.workspace, room}, {total, weight.size(1)}, stacked.options());
    if (bias.defined() && !adds_bias_later && dtype == at::kFloat) {
      product.copy_(bias);
      add_product(product, stacked, weight, 1.0);
    } else if (bias.defined() && !adds_bias_later) {
      at::addmm_out(const_cast<at::Tensor&>(product), bias, stacked, weight);
    } else {
      multiply(product, stacked, weight);
    }
    const at::Tensor later = adds_bias_later ? bias : at::Tensor();
    Finish(spec, stack, product, later, inputs, result, masks).run();
  }
  return result;
}

}  // namespace nsn::detail
