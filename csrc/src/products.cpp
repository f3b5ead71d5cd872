#include "products.h"

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "autograd.h"

namespace nsn::detail {

namespace {

#ifdef CPUBLAS_BRGEMM_F32F32F32

/// Rows that one task computes: few sizes, since torch keeps the code that it makes for each.
constexpr int64_t kRows = 64;
/// From so many elements on along the third dimension a transposed copy pays, being read that
/// often.
constexpr int64_t kCopyPays = 512;
constexpr int64_t kLeastWork = int64_t{1} << 20;

bool has_rows(const at::Tensor& matrix) {
  return matrix.stride(1) == 1 && matrix.stride(0) >= matrix.size(1);
}

/// The matrix, or where it lies transposed and copying pays a copy; undefined where neither.
at::Tensor in_rows(const at::Tensor& matrix, int64_t read) {
  if (has_rows(matrix)) return matrix;
  return read >= kCopyPays ? matrix.contiguous() : at::Tensor();
}

/// Whether it was done.
bool by_blocks(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool adds) {
  const int64_t m = a.size(0), k = a.size(1), n = b.size(1);
  const bool fits = c.scalar_type() == at::kFloat && a.scalar_type() == at::kFloat &&
                    c.device().is_cpu() && !plain_forced() && m * n * k >= kLeastWork && n >= 16 &&
                    k >= 16 && has_rows(c);
  if (!fits) return false;
  const at::Tensor rows_a = in_rows(a, n), rows_b = in_rows(b, m);
  if (!rows_a.defined() || !rows_b.defined()) return false;
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

bool by_blocks(const at::Tensor&, const at::Tensor&, const at::Tensor&, bool) { return false; }

#endif

}  // namespace

void multiply(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b) {
  if (by_blocks(c, a, b, /*adds=*/false)) return;
  at::Tensor out = c;
  at::mm_out(out, a, b);
}

void add_product(const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, double alpha) {
  if (alpha == 1.0 && by_blocks(c, a, b, /*adds=*/true)) return;
  at::Tensor out = c;
  at::addmm_out(out, c, a, b, /*beta=*/1, alpha);
}

}  // namespace nsn::detail
