#include "nsn/checkpoint/runtime_file.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <stdexcept>
#include <utility>

#include "checkpoint/files.h"
#include "inference/packed_tensors.h"
#include "inference/packed_weight.h"
#include "inference/planning.h"
#include "kernels/panels.h"
#include "kernels/weight_type.h"
#include "nsn/description/lower.h"
#include "operations/autocast.h"
#include "operations/plain.h"
#include "runtime/file.h"

namespace nsn {

namespace {

using kernels::WeightType;
using runtime::File;
using runtime::FileTensor;

/// What a tensor of a file is made of: a copy of the pack's tensors, or one of its two rows; or the
/// scales of the rows of a weight, times that where it is there.
struct Source {
  std::optional<size_t> copy;
  std::optional<int64_t> row = std::nullopt;
  std::optional<size_t> scales_of = std::nullopt;
  auto operator<=>(const Source&) const = default;
};

WeightType weight_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return WeightType::kFloat32;
    case at::kHalf:
      return WeightType::kFloat16;
    case at::kBFloat16:
      return WeightType::kBFloat16;
    case at::kChar:
      return WeightType::kInt8;
    default:
      TORCH_CHECK_VALUE(false,
                        "nsn::write_runtime: weights are held as Float, Half, BFloat16 or "
                        "Char (int8), but were asked for as ",
                        type, ". Choose one of these.");
  }
}

/// The weight of a product or convolution that may be of another type than float32, or null.
struct Product {
  plan::TensorPlace weight;
  plan::Epilogue* epilogue;
};
std::optional<Product> product_of(plan::Kernel& kernel) {
  if (auto* k = std::get_if<plan::Multiply>(&kernel)) return Product{k->weight, &k->epilogue};
  auto* k = std::get_if<plan::Convolve>(&kernel);
  if (k == nullptr || k->groups > 1) return std::nullopt;
  return Product{k->weight, &k->epilogue};
}

/// What int8 weights (out, ...) of each row are multiplied by.
at::Tensor scales_of(const at::Tensor& weight) {
  const at::Tensor scales = weight.flatten(1).abs().amax(1) / kernels::largest(WeightType::kInt8);
  // Rows of zeros stay that, and those that are next to zero become so.
  return at::where(scales >= std::numeric_limits<float>::min(), scales, at::ones_like(scales));
}

void check_can_hold(const ParameterTable& table, const Program& program, const std::string& name) {
  const Description& description = table.description();
  for (const size_t i : c10::irange(table.size())) {
    if (!table[i].defined() || !table[i].is_floating_point()) continue;
    detail::check_plain(table[i], description.parameters()[i].name, "write_runtime");
    TORCH_CHECK_VALUE(table[i].scalar_type() == at::kFloat, "nsn::write_runtime: parameter '",
                      description.parameters()[i].name, "' is of ", table[i].scalar_type(),
                      ", but a runtime file holds float32. Convert the network with to().");
  }
  for (const Step& step : program.steps()) {
    TORCH_CHECK_VALUE(!std::holds_alternative<primitives::Call>(step.primitive),
                      "nsn::write_runtime: block '", step.block, "' of sub-network '", name,
                      "' is not nsn's own, and a runtime file holds those alone. Leave the "
                      "sub-network out, or make the block of built-in ones.");
  }
  TORCH_CHECK_VALUE(detail::has_plan(program), "nsn::write_runtime: sub-network '", name,
                    "' computes with the numbers of its input, and plans embed them and nothing "
                    "else. Leave it out, or give it an input of float32.");
}

/// The weight of a box, (out, in, taps), of a tensor in panels.
at::Tensor box_of(const at::Tensor& weight, const FileTensor& tensor, size_t box) {
  const auto part = [](const at::Tensor& from, int64_t dim, const std::vector<int64_t>& ends,
                       size_t i) {
    const int64_t begin = i == 0 ? 0 : ends[i - 1];
    return from.narrow(dim, begin, ends[i] - begin);
  };
  const size_t columns = tensor.in_ends.size();
  return part(part(weight, 0, tensor.out_ends, box / columns), 1, tensor.in_ends, box % columns);
}

class Contents {
 public:
  Contents(const ParameterTable& table, const std::vector<size_t>& subnetworks, WeightType type)
      : table_(table), type_(type) {
    const Description& description = table.description();
    for (const size_t s : subnetworks) {
      const std::string name = description.name(s);
      programs_.push_back(lower(description, name));
      check_can_hold(table, programs_.back(), name);
      detail::Planned planned = detail::make_plan(programs_.back(), s, tensors_);
      runtime::FileNetwork network{name, std::move(planned.plan), {}};
      for (const auto& [slice, row] : planned.tensors) {
        network.table.push_back({place_of({slice->copy, row}), 0, 0});
        if (!tensors_.is_panels(slice->copy)) continue;
        network.table.back().out = slice->kept[0];
        network.table.back().in = slice->kept[1];
      }
      if (type == WeightType::kInt8) put_scales(network, planned.tensors);
      file_.networks.push_back(std::move(network));
    }
    for (const Source& source : sources_) {
      contents_.push_back(tensor_of(source));
      file_.tensors.push_back(shape_of(source, contents_.back()));
      if (is_panels(source) && type != WeightType::kFloat32) check_fits(source, contents_.back());
    }
    runtime::place(file_);
  }

  void write(detail::NewFile& to) const {
    for (const runtime::FileNetwork& network : file_.networks) check(network);
    const std::string header = runtime::header_of(file_);
    try {
      runtime::read_header(header);
    } catch (const std::runtime_error& error) {
      TORCH_CHECK_VALUE(false, "nsn::write_runtime: a runtime file cannot hold this network: ",
                        error.what(), ". Leave out the sub-network, or make it smaller.");
    }
    to.write(header.data(), header.size());
    std::map<int64_t, std::pair<size_t, size_t>> boxes;  // by where they lie
    for (const size_t t : c10::irange(file_.tensors.size())) {
      for (const size_t b : c10::irange(file_.tensors[t].boxes.size())) {
        const runtime::Box& box = file_.tensors[t].boxes[b];
        if (box.bytes > 0) boxes[box.offset] = {t, b};
      }
    }
    auto at = static_cast<int64_t>(header.size());
    const auto fill_up = [&](int64_t end) {
      const std::string zeros(static_cast<size_t>(end - at), '\0');
      to.write(zeros.data(), zeros.size());
      at = end;
    };
    for (const auto& [offset, place] : boxes) {
      fill_up(offset);
      const std::vector<char> content = content_of(place.first, place.second);
      to.write(content.data(), content.size());
      at = offset + static_cast<int64_t>(content.size());
    }
  }

 private:
  /// Refuses by the block's name what no plan of a file may hold.
  void check(const runtime::FileNetwork& network) const {
    try {
      runtime::check(network, file_);
    } catch (const plan::BadPlan& error) {
      const std::string block = error.step ? network.plan.steps[*error.step].block : "";
      TORCH_CHECK_VALUE(false, "nsn::write_runtime: a runtime file cannot hold ",
                        block.empty() ? "" : "block '" + block + "' of ", "sub-network '",
                        network.name, "': ", error.what(),
                        ". Leave out the sub-network, or make it smaller.");
    }
  }

  size_t place_of(const Source& source) {
    const auto [found, is_new] = places_.try_emplace(source, sources_.size());
    if (is_new) sources_.push_back(source);
    return found->second;
  }

  bool is_panels(const Source& source) const {
    return !source.scales_of && tensors_.is_panels(*source.copy);
  }

  /// Has the epilogues of products multiply by the scales of their weights' rows.
  void put_scales(runtime::FileNetwork& network, const std::vector<detail::PlanTensor>& tensors) {
    for (plan::Step& step : network.plan.steps) {
      const auto product = product_of(step.kernel);
      if (!product) continue;
      Source source{{}, {}, tensors[product->weight].slice->copy};
      if (product->epilogue->scale) {
        const auto& [slice, row] = tensors[*product->epilogue->scale];
        source.copy = slice->copy;
        source.row = row;
      }
      product->epilogue->scale = network.table.size();
      network.table.push_back({place_of(source), 0, 0});
    }
  }

  void check_fits(const Source& source, const at::Tensor& weight) const {
    // Of int8 the quotients by their scales always fit.
    const double most =
        type_ == WeightType::kInt8 ? std::numeric_limits<float>::max() : kernels::largest(type_);
    // Of weights that are not finite the quotients are no numbers.
    const auto found = weight.abs().max().item<double>();
    const size_t parameter = tensors_.parameter(*source.copy);
    TORCH_CHECK_VALUE(found <= most, "nsn::write_runtime: parameter '",
                      table_.description().parameters()[parameter].name, "' has ",
                      std::isnan(found) ? std::string("weights that are not finite")
                                        : c10::str("a weight of size ", found),
                      ", but as ", kernels::name_of(type_),
                      " weights have to be finite and at most ", most,
                      ". Choose a wider type, or train the network again.");
  }

  at::Tensor tensor_of(const Source& source) const {
    if (source.scales_of) {
      const at::Tensor scales = scales_of(tensors_.whole(*source.scales_of, table_).cpu());
      if (!source.copy) return scales;
      const at::Tensor own = tensor_of({source.copy, source.row});
      // Of both what is used is leading.
      const int64_t count = std::min(own.size(0), scales.size(0));
      return own.narrow(0, 0, count) * scales.narrow(0, 0, count);
    }
    const at::Tensor all = tensors_.whole(*source.copy, table_).cpu();
    if (is_panels(source)) {
      const at::Tensor weight = detail::with_taps(all);
      return type_ == WeightType::kInt8 ? weight / scales_of(weight).view({-1, 1, 1}) : weight;
    }
    return (source.row ? all[*source.row] : all).contiguous();
  }

  FileTensor shape_of(const Source& source, const at::Tensor& tensor) const {
    FileTensor result;
    if (is_panels(source)) {
      result.type = type_;
      result.sizes[0] = tensor.size(2);
      return result;
    }
    // Vectors, tables and taps keep their extents; what is added is as long as it is.
    if (tensor.dim() > 3) {
      result.sizes[2] = tensor.numel();
      return result;
    }
    for (int64_t d = 1; d <= tensor.dim(); ++d) {
      result.sizes[static_cast<size_t>(3 - d)] = tensor.size(-d);
    }
    return result;
  }

  std::vector<char> content_of(size_t place, size_t box) const {
    const at::Tensor& tensor = contents_[place];
    const FileTensor& own = file_.tensors[place];
    std::vector<float> elements(static_cast<size_t>(own.elements(box)));
    if (own.is_panels()) {
      kernels::fill_panels(detail::source_of(box_of(tensor, own, box)), elements.data());
    } else {
      std::copy_n(tensor.const_data_ptr<float>(), tensor.numel(), elements.begin());
    }
    std::vector<char> result(static_cast<size_t>(own.bytes(box)));
    if (own.type == WeightType::kFloat32) {
      std::memcpy(result.data(), elements.data(), result.size());
      return result;
    }
    char* to = result.data();
    for (const float each : elements) {
      kernels::store(own.type, each, to);
      to += kernels::bytes_of(own.type);
    }
    return result;
  }

  const ParameterTable& table_;
  WeightType type_;
  std::deque<Program> programs_;  // which the tensors refer to
  detail::PackedTensors tensors_;
  std::map<Source, size_t> places_;
  std::vector<Source> sources_;
  /// What they are, on the CPU.
  std::vector<at::Tensor> contents_;
  File file_;
};

}  // namespace

void write_runtime(const Network& net, const std::string& path,
                   const std::vector<std::string>& subnetworks, at::ScalarType weights) {
  write_runtime(net->parameter_table(), path, subnetworks, weights);
}

void write_runtime(const ParameterTable& network, const std::string& path,
                   const std::vector<std::string>& subnetworks, at::ScalarType weights) {
  const WeightType type = weight_type(weights);
  const at::NoGradGuard no_grad;
  const detail::WithoutAutocast guard(at::kCPU);
  const std::vector<size_t> places = network.places_of(subnetworks);
  const ParameterTable table = network.for_inference(places, /*copies_modules=*/true);
  table.core().check_statistics(table, places);
  const Contents contents(table, places, type);
  detail::NewFile file(path);
  contents.write(file);
  file.commit();
}

}  // namespace nsn
