#include "packs.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <utility>

#include "blocks/support.h"
#include "elementwise.h"
#include "regions.h"
#include "slices.h"

namespace nsn::detail {

namespace {

bool has_kernels(const at::Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat;
}

/// activation(scale * y + bias) by plain operations.
at::Tensor plain_epilogue(at::Tensor y, const at::Tensor& scale, const at::Tensor& bias,
                          const Activation& activation, int64_t dim) {
  if (scale.defined()) y = y * along(scale, dim, y);
  if (bias.defined()) y = y + along(bias, dim, y);
  return activate(y, activation, dim);
}

/// The activation behind a product of which `relu` says whether it has it already. In place where
/// there is a kernel for it; y lies without gaps in some order.
at::Tensor kernel_epilogue(const at::Tensor& y, const Activation& activation, int64_t dim) {
  if (std::holds_alternative<torch::enumtype::kReLU>(activation)) return y;
  if (std::holds_alternative<torch::enumtype::kGELU>(activation)) {
    const at::Tensor flat = y.as_strided({y.numel()}, {1});
    gelu_forward(flat, /*bias=*/{}, /*out=*/flat, /*derivative=*/{});
    return y;
  }
  return activate(y, activation, dim);
}

at::Tensor plain_convolution(const at::Tensor& x, const at::Tensor& weight,
                             const functional::ConvGeometry& geometry) {
  const std::vector<int64_t> none(geometry.stride.size(), 0);
  return at::convolution(x, weight, /*bias=*/{}, geometry.stride, geometry.padding,
                         geometry.dilation, /*transposed=*/false, none,
                         /*groups=*/x.size(1) / weight.size(1));
}

}  // namespace

at::Tensor Packs::Part::plain() const { return merge::leading(weight->plain, kept); }

const float* Packs::Part::data(const Part* part) {
  return part == nullptr ? nullptr : part->weight->plain.const_data_ptr<float>();
}

void Packs::note_read(const BlockPass& pass, size_t p, size_t lane) {
  if (!is_filling_) return;
  const LanePass& own = pass.lanes[lane];
  reads_[own.parameters[p].place].insert(own.subnetwork);
}

/// The slice, from the table, while filling.
at::Tensor Packs::own(const BlockPass& pass, size_t p) {
  const ParameterPlace& place = pass.lanes[0].parameters[p];
  const at::Tensor& whole = pass.table[place.place];
  // A private parameter is as wide as its sub-network.
  return place.is_private ? whole : slice_of(whole, pass.lanes[0].fit->slices[p]);
}

const Packs::Part& Packs::part(const BlockPass& pass, size_t p, Form form) {
  const LanePass& lane = pass.lanes[0];
  const Layout& layout = lane.fit->slices[p];
  const auto found = parts_.find(&layout);
  if (found != parts_.end()) return found->second;
  TORCH_INTERNAL_ASSERT(is_filling_, "sub-network '", lane.lane.name, "' is not in this pack");
  const ParameterPlace& place = lane.parameters[p];
  const bool leads = place.is_private || std::all_of(layout.begin(), layout.end(),
                                                     [](auto& axis) { return axis.is_leading(); });
  const std::string key = std::to_string(place.place) + '/' +
                          std::to_string(static_cast<int>(form)) + '/' +
                          (leads ? "" : to_string(layout));
  auto& weight = weights_[key];
  if (!weight) weight = std::make_unique<Weight>(Weight{place.place, form});
  weight->users.insert(lane.subnetwork);
  // The widest slice so far; what is leading lies in the parameter as a box.
  Shape shape = kept_shape(layout);
  if (weight->shape.empty()) weight->shape = shape;
  for (const size_t i : c10::irange(shape.size())) {
    weight->shape[i] = std::max(weight->shape[i], shape[i]);
  }
  weight->plain = leads ? merge::leading(pass.table[place.place], weight->shape) : own(pass, p);
  return parts_.emplace(&layout, Part{weight.get(), std::move(shape)}).first->second;
}

const Packs::Part* Packs::part(const BlockPass& pass, std::optional<size_t> p) {
  return p ? &part(pass, *p, Form::kCopy) : nullptr;
}

at::Tensor Packs::product(const BlockPass& pass, const ProductPlaces& places,
                          const Activation& activation, const at::Tensor& x) {
  const Part& weight = part(pass, places.weight, Form::kProduct);
  const Part *scale = part(pass, places.scale), *bias = part(pass, places.bias);
  if (!weight.weight->packed) {
    return plain_epilogue(at::linear(x, weight.plain()), scale ? scale->plain() : at::Tensor(),
                          bias ? bias->plain() : at::Tensor(), activation, -1);
  }
  const bool relu = std::holds_alternative<torch::enumtype::kReLU>(activation);
  const at::Tensor y = weight.weight->packed->multiply(x, weight.kept[0],
                                                       {Part::data(scale), Part::data(bias), relu});
  return kernel_epilogue(y, activation, -1);
}

at::Tensor Packs::convolution(const BlockPass& pass, const ProductPlaces& places,
                              const functional::ConvGeometry& geometry,
                              const Activation& activation, const at::Tensor& x) {
  // One sum over all channels; a convolution in groups has several.
  const bool in_groups = x.size(1) != pass.lanes[0].fit->slices[places.weight][1].kept();
  const Part& weight = part(pass, places.weight, in_groups ? Form::kCopy : Form::kConvolution);
  const Part *scale = part(pass, places.scale), *bias = part(pass, places.bias);
  if (!weight.weight->packed) {
    return plain_epilogue(plain_convolution(x, weight.plain(), geometry),
                          scale ? scale->plain() : at::Tensor(),
                          bias ? bias->plain() : at::Tensor(), activation, 1);
  }
  const bool relu = std::holds_alternative<torch::enumtype::kReLU>(activation);
  const kernels::Epilogue epilogue{Part::data(scale), Part::data(bias), relu};
  const auto& [stride, padding, dilation] = geometry;
  if (x.dim() == 3) {  // one dimension as the second of two
    const PackedGeometry packed{{1, stride[0]}, {0, padding[0]}, {1, dilation[0]}};
    const at::Tensor y =
        weight.weight->packed->convolve(x.unsqueeze(2), weight.kept[0], packed, epilogue);
    return kernel_epilogue(y.squeeze(2), activation, 1);
  }
  const PackedGeometry packed{
      {stride[0], stride[1]}, {padding[0], padding[1]}, {dilation[0], dilation[1]}};
  return kernel_epilogue(weight.weight->packed->convolve(x, weight.kept[0], packed, epilogue),
                         activation, 1);
}

/// Scale and shift of a batch norm, in double precision until they are one.
std::unique_ptr<Packs::Weight> Packs::fold(const BlockPass& pass, const NormPlaces& places,
                                           double eps) {
  const at::Tensor mean = own(pass, places.mean).to(at::kDouble);
  at::Tensor scale = at::rsqrt(own(pass, places.variance).to(at::kDouble) + eps);
  at::Tensor shift = -mean * scale;
  if (places.weight) {
    const at::Tensor weight = own(pass, *places.weight).to(at::kDouble);
    scale = scale * weight;
    shift = shift * weight + own(pass, *places.bias).to(at::kDouble);
  }
  const size_t place = pass.lanes[0].parameters[places.mean].place;
  auto norm = std::make_unique<Weight>(Weight{place, Form::kNorm});
  norm->plain = at::stack({scale, shift}).to(pass.table[place].scalar_type());
  norm->shape = {2, mean.numel()};
  return norm;
}

at::Tensor Packs::batch_norm(const BlockPass& pass, const NormPlaces& places, double eps,
                             const at::Tensor& x) {
  const LanePass& lane = pass.lanes[0];
  const Layout* layout = &lane.fit->slices[places.mean];
  const auto found = parts_.find(layout);
  if (found == parts_.end()) {
    // Affine parts may be private where statistics are not, and the other way round.
    std::string key = "norm/" + to_string(*layout);
    for (const auto& p : {std::optional(places.mean), places.weight, places.bias}) {
      if (p) key += '/' + std::to_string(lane.parameters[*p].place);
    }
    auto& norm = weights_[key];
    if (!norm) norm = fold(pass, places, eps);
    norm->users.insert(lane.subnetwork);
    parts_.emplace(layout, Part{norm.get(), norm->shape});
    return batch_norm(pass, places, eps, x);
  }
  const at::Tensor& plain = found->second.weight->plain;
  const at::Tensor scale = plain.select(0, 0), shift = plain.select(0, 1);
  if (!has_kernels(x) || !has_kernels(plain)) return x * along(scale, 1, x) + along(shift, 1, x);
  const at::Tensor rows = x.movedim(1, -1).contiguous();
  const at::Tensor y = at::empty_like(rows);
  scale_rows(rows, scale, shift, y);
  return y.movedim(-1, 1);
}

std::vector<at::Tensor> Packs::finish(at::TensorList table) {
  is_filling_ = false;
  std::vector<at::Tensor> result(table.size());
  for (const auto& [key, weight] : weights_) {
    static_cast<void>(key);
    const bool multiplies = weight->form == Form::kProduct || weight->form == Form::kConvolution;
    if (multiplies && has_kernels(weight->plain)) {
      // One dimension as the second of two.
      const bool is_line = weight->plain.dim() == 3;
      weight->packed.emplace(is_line ? weight->plain.unsqueeze(2) : weight->plain);
      weight->plain.reset();
    } else {
      weight->plain = weight->plain.clone(at::MemoryFormat::Contiguous);
    }
  }
  for (const size_t place : c10::irange(table.size())) {
    if (!table[place].defined()) continue;
    result[place] = reads_.count(place) > 0
                        ? table[place].clone()
                        : at::zeros({}, table[place].options()).expand(table[place].sizes());
  }
  for (const auto& [place, users] : reads_) {
    static_cast<void>(users);
    read_bytes_[place] = static_cast<int64_t>(result[place].nbytes());
  }
  return result;
}

std::vector<Pack::Entry> Packs::entries(const Description& description) const {
  const auto names = [&](const std::set<size_t>& users) {
    std::vector<std::string> result;
    for (const size_t user : users) result.push_back(description.subnetworks()[user].name);
    return result;
  };
  const auto form = [](const Weight& weight) {
    if (weight.form == Form::kNorm) return "norm";
    if (!weight.packed) return "copy";
    return weight.form == Form::kProduct ? "product" : "convolution";
  };
  std::vector<std::pair<size_t, Pack::Entry>> placed;
  for (const auto& [key, weight] : weights_) {
    static_cast<void>(key);
    const int64_t bytes =
        weight->packed ? weight->packed->nbytes() : static_cast<int64_t>(weight->plain.nbytes());
    placed.emplace_back(weight->place,
                        Pack::Entry{description.parameters()[weight->place].name, weight->shape,
                                    form(*weight), bytes, names(weight->users)});
  }
  for (const auto& [place, users] : reads_) {
    const auto& parameter = description.parameters()[place];
    placed.emplace_back(place, Pack::Entry{parameter.name, parameter.shape, "copy",
                                           read_bytes_.at(place), names(users)});
  }
  std::stable_sort(placed.begin(), placed.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Pack::Entry> result;
  for (auto& [place, entry] : placed) {
    static_cast<void>(place);
    result.push_back(std::move(entry));
  }
  return result;
}

}  // namespace nsn::detail
