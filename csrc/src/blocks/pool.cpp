#include "nsn/blocks/pool.h"

#include <ATen/ops/avg_pool1d.h>
#include <ATen/ops/avg_pool2d.h>
#include <ATen/ops/max_pool1d.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/mean.h>

#include <ostream>
#include <type_traits>

#include "blocks/builtin.h"
#include "blocks/options.h"
#include "blocks/support.h"
#include "nsn/blocks/lowering.h"

namespace nsn {

// Found by the type of the options, which an unnamed namespace would prevent.
template <PoolKind kind, size_t D>
static void list_options(const PoolOptions<kind, D>& options, const PoolOptions<kind, D>& defaults,
                         detail::OptionVisitor& visitor) {
  visitor.required("kernel_size", options.kernel_size(), detail::doc::kKernelSize,
                   detail::at_least(1));
  visitor.optional("stride", options.stride(), defaults.stride(),
                   "the step from one position of the kernel to the next; none is `kernel_size`",
                   detail::at_least(1));
  visitor.optional("padding", options.padding(), defaults.padding(), detail::doc::kPadding,
                   detail::at_least(0));
}

namespace {

template <PoolKind kind, size_t D>
detail::BlockType pool_type(const char* name) {
  using Options = PoolOptions<kind, D>;
  detail::BlockType result = detail::block_type(name, Options(1));
  for (detail::OptionFacts& option : result.options) {
    if (option.name == "stride") option.standard = "null";
  }
  result.read = [](detail::Fields& fields, const Supplied& supplied) -> BlockPtr {
    // The stride's default is the kernel's size.
    Options options(1);
    detail::OptionsReader reader(fields, supplied);
    reader.required("kernel_size", options.kernel_size(), detail::doc::kKernelSize);
    options.stride(options.kernel_size());
    return detail::read_options(fields, supplied, options);
  };
  return result;
}

}  // namespace

template <PoolKind kind, size_t D>
PoolOptions<kind, D>::operator BlockPtr() const {
  return std::make_shared<const Pool<kind, D>>(*this);
}

template <PoolKind kind, size_t D>
Pool<kind, D>::Pool(PoolOptions<kind, D> options) : options_(options) {
  detail::check_options(type(), options_);
  for (size_t d = 0; d < D; ++d) {
    const int64_t padding = (*options_.padding())[d];
    TORCH_CHECK_VALUE(2 * padding <= (*options_.kernel_size())[d], "nsn::", type(),
                      ": padding must be from 0 to half of kernel_size, but is ", padding, ".");
  }
}

template <PoolKind kind, size_t D>
std::string Pool<kind, D>::type() const {
  return std::string(kind == PoolKind::kMax ? "MaxPool" : "AvgPool") + (D == 1 ? "1d" : "2d");
}

template <PoolKind kind, size_t D>
std::string Pool<kind, D>::options_json() const {
  return detail::write_options(options_, options_);
}

template <PoolKind kind, size_t D>
Fit Pool<kind, D>::fit(const Signal& input, const BlockUse& use) const {
  if (input.layout.size() != D + 1 || input.is_integral) {
    misfit(D == 1 ? "floating (C, L)" : "floating (C, H, W)", input);
  }
  Fit result{use, input, input, {}, 0, {}};
  for (size_t d = 0; d < D; ++d) {
    const int64_t room =
        input.layout[d + 1].kept() + 2 * (*options_.padding())[d] - (*options_.kernel_size())[d];
    if (room < 0) misfit("at least as many positions as its kernel_size", input);
    result.output.layout[d + 1] = Axis(room / (*options_.stride())[d] + 1);
  }
  return result;
}

template <PoolKind kind, size_t D>
at::Tensor Pool<kind, D>::forward(const at::Tensor& x, at::TensorList parameters,
                                  const LanePass& lane, const BlockPass& pass) const {
  static_cast<void>(parameters);
  static_cast<void>(lane);
  static_cast<void>(pass);
  const auto &kernel = options_.kernel_size(), &stride = options_.stride(),
             &padding = options_.padding();
  if constexpr (kind == PoolKind::kMax) {
    return D == 1 ? at::max_pool1d(x, kernel, stride, padding)
                  : at::max_pool2d(x, kernel, stride, padding);
  } else {
    return D == 1 ? at::avg_pool1d(x, kernel, stride, padding)
                  : at::avg_pool2d(x, kernel, stride, padding);
  }
}

template <PoolKind kind, size_t D>
size_t Pool<kind, D>::lower(Lowering& to, size_t x) const {
  using Pooling =
      std::conditional_t<kind == PoolKind::kMax, primitives::MaxPool, primitives::AveragePool>;
  const auto extents = [](const torch::ExpandingArray<D>& array) {
    return std::vector<int64_t>(array->begin(), array->end());
  };
  return to.step("pool",
                 Pooling{extents(options_.kernel_size()), extents(options_.stride()),
                         extents(options_.padding())},
                 {x});
}

template <PoolKind kind, size_t D>
void Pool<kind, D>::pretty_print(std::ostream& stream) const {
  detail::print_options(stream, options_, PoolOptions<kind, D>(options_.kernel_size()));
}

template struct PoolOptions<PoolKind::kMax, 1>;
template struct PoolOptions<PoolKind::kMax, 2>;
template struct PoolOptions<PoolKind::kAverage, 1>;
template struct PoolOptions<PoolKind::kAverage, 2>;
template class Pool<PoolKind::kMax, 1>;
template class Pool<PoolKind::kMax, 2>;
template class Pool<PoolKind::kAverage, 1>;
template class Pool<PoolKind::kAverage, 2>;

GlobalAvgPoolOptions::operator BlockPtr() const { return std::make_shared<const GlobalAvgPool>(); }

Fit GlobalAvgPool::fit(const Signal& input, const BlockUse& use) const {
  if (input.layout.size() < 2 || input.is_integral) misfit("floating (C, *)", input);
  return {use, input, {{input.layout[0]}, false}, {}, 0, {}};
}

at::Tensor GlobalAvgPool::forward(const at::Tensor& x, at::TensorList parameters,
                                  const LanePass& lane, const BlockPass& pass) const {
  static_cast<void>(parameters);
  static_cast<void>(lane);
  static_cast<void>(pass);
  return x.flatten(2).mean(2);
}

size_t GlobalAvgPool::lower(Lowering& to, size_t x) const {
  return to.step("pool", primitives::GlobalAverage{}, {x});
}

namespace detail {

BlockType block_type_MaxPool1d() { return pool_type<PoolKind::kMax, 1>("MaxPool1d"); }
BlockType block_type_MaxPool2d() { return pool_type<PoolKind::kMax, 2>("MaxPool2d"); }
BlockType block_type_AvgPool1d() { return pool_type<PoolKind::kAverage, 1>("AvgPool1d"); }
BlockType block_type_AvgPool2d() { return pool_type<PoolKind::kAverage, 2>("AvgPool2d"); }
BlockType block_type_GlobalAvgPool() {
  return {"GlobalAvgPool",
          [](Fields&, const Supplied&) -> BlockPtr { return GlobalAvgPoolOptions(); },
          {}};
}

}  // namespace detail
}  // namespace nsn
