#include "packs.h"

#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "elementwise.h"
#include "slices.h"

namespace nsn::detail {

namespace {

bool takes_kernels(const at::Tensor& tensor) {
  return tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat;
}

/// In channels-last where there are two dimensions, else contiguous.
at::Tensor in_convolution_format(const at::Tensor& x) {
  if (x.dim() != 4) return x.contiguous();
  return x.permute({0, 2, 3, 1}).contiguous().permute({0, 3, 1, 2});
}

// oneDNN's convolution with weights in a format of its own, which torch has for compiled graphs and
// does not declare in a header.
using ReorderWeight = at::Tensor(const at::Tensor&, at::IntArrayRef, at::IntArrayRef,
                                 at::IntArrayRef, int64_t, at::OptionalIntArrayRef);
using Pointwise = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                             at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t,
                             std::string_view, torch::List<std::optional<at::Scalar>>,
                             std::optional<std::string_view>);

/// Nothing where torch was built without oneDNN.
template <typename Signature>
std::optional<c10::TypedOperatorHandle<Signature>> find_operator(const char* name) {
  const auto handle = c10::Dispatcher::singleton().findSchema({name, ""});
  if (!handle || !handle->hasKernelForDispatchKey(c10::DispatchKey::CPU)) return std::nullopt;
  return handle->typed<Signature>();
}

int64_t groups_of(const at::Tensor& x, const Shape& weight) { return x.size(1) / weight[1]; }

at::Tensor plain_convolution(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                             const functional::ConvGeometry& geometry, bool relu) {
  const auto own_bias = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  at::Tensor y = at::convolution(in_convolution_format(x), weight, own_bias, geometry.stride,
                                 geometry.padding, geometry.dilation, /*transposed=*/false,
                                 std::vector<int64_t>(geometry.stride.size(), 0),
                                 groups_of(x, weight.sizes().vec()));
  return relu ? y.relu_() : y;
}

at::Tensor onednn_convolution(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                              const functional::ConvGeometry& geometry, int64_t groups, bool relu) {
  static const auto pointwise = find_operator<Pointwise>("mkldnn::_convolution_pointwise");
  const auto own_bias = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  return pointwise->call(in_convolution_format(x), weight, own_bias, geometry.padding,
                         geometry.stride, geometry.dilation, groups, relu ? "relu" : "none",
                         torch::List<std::optional<at::Scalar>>(), "");
}

/// The least of several runs, in seconds.
template <typename Run>
double seconds(const Run& run) {
  constexpr int kRuns = 7;
  run();
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRuns; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    least = std::min(
        least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}

}  // namespace

void Packs::note_read(const BlockPass& pass, size_t p, size_t lane) {
  if (!is_filling_) return;
  const LanePass& own = pass.lanes[lane];
  reads_[own.parameters[p].place].insert(own.subnetwork);
}

Packs::Slice& Packs::slice(const BlockPass& pass, size_t p, const char* form) {
  const LanePass& lane = pass.lanes[0];
  const Layout& layout = lane.fit->slices[p];
  const auto found = by_layout_.find(&layout);
  if (found != by_layout_.end()) return *found->second;
  TORCH_CHECK(is_filling_, "nsn::Pack: sub-network '", lane.lane.name,
              "' is not in this pack. Name it in PackOptions::subnetworks.");
  const ParameterPlace& place = lane.parameters[p];
  const std::string key =
      std::to_string(place.place) + form + (place.is_private ? std::string() : to_string(layout));
  auto& slice = slices_[key];
  if (!slice) slice = std::make_unique<Slice>(Slice{place.place, kept_shape(layout)});
  slice->users.insert(lane.subnetwork);
  by_layout_.emplace(&layout, slice.get());
  if (slice->plain.defined() || slice->product || slice->onednn.defined()) return *slice;
  const at::Tensor& whole = pass.table[place.place];
  // A private parameter is as wide as its sub-network.
  const at::Tensor own = place.is_private ? whole : slice_of(whole, layout);
  slice->plain = own.clone(at::MemoryFormat::Contiguous);
  return *slice;
}

const at::Tensor& Packs::vector(const BlockPass& pass, size_t p) {
  return slice(pass, p, " vector ").plain;
}

at::Tensor Packs::product(const BlockPass& pass, const ProductPlaces& places,
                          const Activation& activation, const at::Tensor& x) {
  Slice& weight = slice(pass, places.weight, " product ");
  if (is_filling_ && !weight.product && takes_kernels(weight.plain)) {
    weight.product.emplace(weight.plain);
    weight.plain.reset();
  }
  const at::Tensor scale = places.scale ? vector(pass, *places.scale) : at::Tensor();
  const at::Tensor bias = places.bias ? vector(pass, *places.bias) : at::Tensor();
  if (!weight.product) {
    at::Tensor y = at::linear(x, weight.plain);
    if (scale.defined()) y = y * scale;
    if (bias.defined()) y = y + bias;
    return activate(y, activation);
  }
  const auto data = [](const at::Tensor& each) {
    return each.defined() ? each.const_data_ptr<float>() : nullptr;
  };
  const bool relu = std::holds_alternative<torch::enumtype::kReLU>(activation);
  const at::Tensor y = weight.product->multiply(x, {data(scale), data(bias), relu});
  if (std::holds_alternative<torch::enumtype::kGELU>(activation)) {
    gelu_forward(y, /*bias=*/{}, /*out=*/y, /*derivative=*/{});
    return y;
  }
  return relu ? y : activate(y, activation);
}

void Packs::fill_convolution(Slice& slice, const at::Tensor& weight, const at::Tensor& bias,
                             const functional::ConvGeometry& geometry, bool relu,
                             const at::Tensor& x) {
  static const auto reorder = find_operator<ReorderWeight>("mkldnn::_reorder_convolution_weight");
  slice.plain = in_convolution_format(weight);
  const int64_t groups = groups_of(x, slice.shape);
  if (!reorder || !takes_kernels(weight) || weight.dim() != 4) return;
  const at::Tensor onednn = reorder->call(slice.plain, geometry.padding, geometry.stride,
                                          geometry.dilation, groups, x.sizes());
  const double own = seconds([&] { onednn_convolution(x, onednn, bias, geometry, groups, relu); });
  const double plain = seconds([&] { plain_convolution(x, slice.plain, bias, geometry, relu); });
  constexpr double kGain = 0.95;  // less than that is noise
  slice.onednn_is_faster[x.size(0)] = own < kGain * plain;
  if (own < kGain * plain && !slice.onednn.defined()) slice.onednn = onednn;
}

at::Tensor Packs::convolution(const BlockPass& pass, size_t weight_place,
                              std::optional<size_t> bias_place,
                              const functional::ConvGeometry& geometry, bool relu,
                              const at::Tensor& x) {
  Slice& weight = slice(pass, weight_place, " convolution ");
  const at::Tensor bias = bias_place ? vector(pass, *bias_place) : at::Tensor();
  if (is_filling_ && weight.onednn_is_faster.count(x.size(0)) == 0) {
    fill_convolution(weight, weight.plain, bias, geometry, relu, x);
  }
  // That of the nearest batch size.
  bool onednn = false;
  int64_t nearest = std::numeric_limits<int64_t>::max();
  for (const auto& [batch, is_faster] : weight.onednn_is_faster) {
    const int64_t distance = std::abs(batch - x.size(0));
    if (distance < nearest) {
      nearest = distance;
      onednn = is_faster;
    }
  }
  if (!onednn) return plain_convolution(x, weight.plain, bias, geometry, relu);
  return onednn_convolution(x, weight.onednn, bias, geometry, groups_of(x, weight.shape), relu);
}

std::vector<at::Tensor> Packs::finish(at::TensorList table) {
  is_filling_ = false;
  std::vector<at::Tensor> result(table.size());
  for (auto& [key, slice] : slices_) {
    static_cast<void>(key);
    const auto& faster = slice->onednn_is_faster;
    const bool always =
        !faster.empty() &&
        std::all_of(faster.begin(), faster.end(), [](const auto& each) { return each.second; });
    if (always) slice->plain.reset();
    const at::Tensor& whole = table[slice->place];
    result[slice->place] = at::zeros({1}, whole.options()).expand(whole.sizes());
  }
  for (const auto& [place, users] : reads_) {
    static_cast<void>(users);
    result[place] = table[place].clone();
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
  std::vector<std::pair<size_t, Pack::Entry>> placed;
  for (const auto& [key, slice] : slices_) {
    static_cast<void>(key);
    const auto& faster = slice->onednn_is_faster;
    Pack::Entry entry{description.parameters()[slice->place].name,
                      slice->shape,
                      "copy",
                      {},
                      0,
                      names(slice->users)};
    const auto add = [&](const std::string& form, int64_t bytes, std::optional<bool> onednn) {
      Pack::Entry each = entry;
      each.form = form;
      each.bytes = bytes;
      for (const auto& [batch, is_faster] : faster) {
        if (onednn && is_faster == *onednn) each.batch_sizes.push_back(batch);
      }
      placed.emplace_back(slice->place, std::move(each));
    };
    if (slice->product) add("product", slice->product->nbytes(), std::nullopt);
    const bool is_convolution = !faster.empty() || slice->shape.size() > 2;
    if (slice->plain.defined()) {
      add(is_convolution ? "convolution" : "copy", static_cast<int64_t>(slice->plain.nbytes()),
          false);
    }
    if (slice->onednn.defined()) {
      add("convolution by oneDNN", static_cast<int64_t>(slice->onednn.nbytes()), true);
    }
  }
  for (const auto& [place, users] : reads_) {
    const auto& parameter = description.parameters()[place];
    placed.emplace_back(
        place,
        Pack::Entry{
            parameter.name, parameter.shape, "copy", {}, read_bytes_.at(place), names(users)});
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
