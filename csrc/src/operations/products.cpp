#include "operations/products.h"

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <limits>

#include "kernels/level.h"
#include "kernels/matrix_product.h"
#include "operations/autograd.h"
#include "operations/kernels_for.h"
#include "operations/parallel.h"

namespace nsn::detail {

namespace {

/// Of a level: the least of m, n and k from which on a product is computed in panels. Where one is
/// smaller nothing is read often enough to be laid out first, and torch's product is the faster.
struct Rule {
  int64_t panels_from;
};

Rule rule_of(kernels::Level level) {
  constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  switch (level) {
    case kernels::Level::kV4:
      return {4};
    case kernels::Level::kV3:
      return {9};
    default:
      return {kNever};  // without fused multiply-adds there is nothing to gain
  }
}

bool has_rows(const at::Tensor& matrix) {
  return matrix.stride(1) == 1 && (matrix.size(0) <= 1 || matrix.stride(0) >= matrix.size(1));
}

bool is_float_on_cpu(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b) {
  return has_kernels(a) && has_kernels(b) && has_kernels(c);
}

bool by_torch(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool adds,
              double alpha) {
  at::Tensor out = c;
  if (adds) {
    at::addmm_out(out, c, a, b, /*beta=*/1, alpha);
  } else {
    at::mm_out(out, a, b);
  }
  return true;
}

#ifdef CPUBLAS_BRGEMM_F32F32F32

bool by_batch_reduce(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool adds,
                     double alpha) {
  /// Rows that one task computes: few sizes, since torch keeps the code that it makes for each.
  constexpr int64_t kRows = 64;
  const int64_t m = a.size(0), k = a.size(1), n = b.size(1);
  if (!is_float_on_cpu(c, a, b) || !has_rows(c) || alpha != 1.0 || n < 16 || k < 16) return false;
  const at::Tensor rows_a = has_rows(a) ? a : a.contiguous();
  const at::Tensor rows_b = has_rows(b) ? b : b.contiguous();
  const float *from = rows_a.const_data_ptr<float>(), *by = rows_b.const_data_ptr<float>();
  auto* to = c.mutable_data_ptr<float>();
  const int64_t ld_a = rows_a.stride(0), ld_b = rows_b.stride(0), ld_c = c.stride(0);
  at::parallel_for(0, (m + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kRows;
      at::native::cpublas::brgemm(std::min(kRows, m - first), n, k, ld_a, ld_b, ld_c, adds,
                                  from + first * ld_a, by, to + first * ld_c);
    }
  });
  return true;
}

#else

bool by_batch_reduce(const at::Tensor&, const at::Tensor&, const at::Tensor&, bool, double) {
  return false;
}

#endif

bool takes_panels(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b) {
  return is_float_on_cpu(c, a, b) && has_rows(c);
}

bool by_panels(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool adds,
               double alpha) {
  if (!takes_panels(c, a, b)) return false;
  kernels::run({a.size(0), b.size(1), a.size(1), a.const_data_ptr<float>(), a.stride(0),
                a.stride(1), b.const_data_ptr<float>(), b.stride(0), b.stride(1),
                c.mutable_data_ptr<float>(), c.stride(0), static_cast<float>(alpha), adds},
               parallel_for);
  return true;
}

void compute(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool adds,
             double alpha) {
  if (c.numel() == 0) return;
  product_by(route_of(c, a, b, adds), c, a, b, adds, alpha);
}

}  // namespace

std::string_view name_of(Route route) {
  switch (route) {
    case Route::kBatchReduce:
      return "batch_reduce";
    case Route::kPanels:
      return "panels";
    default:
      return "torch";
  }
}

Route route_of(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool /*adds*/) {
  const int64_t least = std::min({a.size(0), a.size(1), b.size(1)});
  const bool panels = least >= rule_of(kernels::level()).panels_from;
  return panels && takes_panels(c, a, b) ? Route::kPanels : Route::kTorch;
}

bool product_by(Route route, const at::Tensor& c, const at::Tensor& a, const at::Tensor& b,
                bool adds, double alpha) {
  switch (route) {
    case Route::kBatchReduce:
      return by_batch_reduce(c, a, b, adds, alpha);
    case Route::kPanels:
      return by_panels(c, a, b, adds, alpha);
    default:
      return by_torch(c, a, b, adds, alpha);
  }
}

void multiply(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b) {
  compute(c, a, b, /*adds=*/false, 1.0);
}

void add_product(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, double alpha) {
  compute(c, a, b, /*adds=*/true, alpha);
}

}  // namespace nsn::detail
