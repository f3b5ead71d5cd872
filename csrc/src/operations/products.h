#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <string_view>

#include "nsn/visibility.h"

namespace nsn::detail {

/// Writes c = a b, or adds alpha a b to c. a: (m, k), b: (k, n), c: (m, n), any strides. By the
/// route that the rule names. Not recorded.
void multiply(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b);
void add_product(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, double alpha);

/// What a product can be computed by: at::mm and at::addmm (MKL where torch is built with it), the
/// batch-reduce product that torch brings along, in blocks of rows, or the library's own kernel,
/// which lays the operands out in panels.
enum class Route { kTorch, kBatchReduce, kPanels };
inline constexpr std::array kRoutes{Route::kTorch, Route::kBatchReduce, Route::kPanels};
NSN_API std::string_view name_of(Route route);

/// The route of `multiply` (adds = false) and `add_product` (true): a rule of the kernels' level
/// and the shape. `make bench-products` prints them all, and what the rule chooses; exported for
/// it.
NSN_API Route route_of(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool adds);

/// Computes c = a b, or c += alpha a b, by one route; false, and nothing done, where it does not
/// take these.
NSN_API bool product_by(Route route, const at::Tensor& c, const at::Tensor& a, const at::Tensor& b,
                        bool adds, double alpha = 1.0);

}  // namespace nsn::detail
