#include "operations/elementwise.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zero.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/elementwise.h"

namespace nsn::detail {

namespace {

using kernels::kWordBits;

constexpr int64_t kWordsPerTask = 256;

/// The dtype that a kernel computes a tensor of T in.
template <typename T>
using Computed = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// Runs a pass whose x and out are tensors' data of dtype T, spread over threads; narrow dtypes go
/// through a buffer of floats. `Pass` is MaskedForward or MaskedApply, all set but x and out.
template <typename T, typename Pass>
void run_words(const Pass& pass, const T* x, T* out) {
  at::parallel_for(0, mask_words(pass.numel), kWordsPerTask, [&](int64_t begin, int64_t end) {
    Pass own = pass;
    if constexpr (std::is_same_v<T, Computed<T>>) {
      own.x = x;
      own.out = out;
      kernels::run(own, begin, end);
    } else {
      std::array<float, kWordBits> buffer;
      for (int64_t word = begin; word < end; ++word) {
        const int64_t first = word * kWordBits;
        own.numel = std::min(kWordBits, pass.numel - first);
        std::copy_n(x + first, own.numel, buffer.begin());
        own.x = own.out = buffer.data();
        if constexpr (requires { own.first; }) own.first = first;
        if (pass.mask != nullptr) own.mask = pass.mask + word;
        kernels::run(own, 0, 1);
        std::copy_n(buffer.begin(), own.numel, out + first);
      }
    }
  });
}

/// A bias as MaskedForward wants it.
template <typename T>
std::vector<Computed<T>> repeated(const at::Tensor& bias) {
  const at::Tensor whole = bias.contiguous();
  const int64_t columns = bias.numel();
  std::vector<Computed<T>> row(static_cast<size_t>(columns + kWordBits));
  std::copy_n(whole.const_data_ptr<T>(), columns, row.begin());
  for (int64_t j = columns; j < columns + kWordBits; ++j) {
    row[static_cast<size_t>(j)] = row[static_cast<size_t>(j - columns)];
  }
  return row;
}

}  // namespace

int64_t mask_words(int64_t numel) { return (numel + kWordBits - 1) / kWordBits; }

void masked_forward(const at::Tensor& x, const at::Tensor& bias, bool relu,
                    const functional::Dropout& dropout, const at::Tensor& out,
                    const at::Tensor& mask) {
  if (dropout.probability >= 1.0) {
    out.zero_();
    if (mask.defined()) mask.zero_();
    return;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "nsn::relu_dropout", [&] {
        std::vector<Computed<scalar_t>> row;
        kernels::MaskedForward<Computed<scalar_t>> pass{};
        pass.numel = x.numel();
        if (bias.defined() && bias.numel() > 0) {
          row = repeated<scalar_t>(bias);
          pass.bias = row.data();
          pass.columns = bias.numel();
        }
        pass.relu = relu;
        pass.drops = dropout.probability > 0.0;
        pass.key = dropout.key;
        pass.drop_below = static_cast<uint32_t>(
            std::min(std::nearbyint(dropout.probability * 4294967296.0), 4294967295.0));
        pass.scale = static_cast<Computed<scalar_t>>(dropout_scale(dropout));
        if (mask.defined())
          pass.mask = reinterpret_cast<uint64_t*>(mask.mutable_data_ptr<int64_t>());
        run_words(pass, x.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>());
      });
}

void masked_apply(const at::Tensor& x, const at::Tensor& mask, double scale,
                  const at::Tensor& out) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "nsn::relu_dropout_backward", [&] {
        kernels::MaskedApply<Computed<scalar_t>> pass{};
        pass.numel = x.numel();
        pass.mask = reinterpret_cast<const uint64_t*>(mask.const_data_ptr<int64_t>());
        pass.scale = static_cast<Computed<scalar_t>>(scale);
        run_words(pass, x.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>());
      });
}

void gelu_forward(const at::Tensor& x, const at::Tensor& bias, const at::Tensor& out,
                  const at::Tensor& derivative) {
  constexpr int64_t kElementsPerTask = 16384;
  if (x.numel() == 0) return;
  const at::Tensor shift = bias.defined() ? bias.contiguous() : bias;
  const int64_t columns = bias.defined() ? x.size(-1) : kElementsPerTask;
  const kernels::Gelu pass{x.const_data_ptr<float>(),
                           x.numel(),
                           columns,
                           bias.defined() ? shift.const_data_ptr<float>() : nullptr,
                           out.mutable_data_ptr<float>(),
                           derivative.defined() ? derivative.mutable_data_ptr<float>() : nullptr};
  at::parallel_for(0, (x.numel() + columns - 1) / columns,
                   std::max<int64_t>(1, kElementsPerTask / columns),
                   [&](int64_t begin, int64_t end) { kernels::run(pass, begin, end); });
}

double dropout_scale(const functional::Dropout& dropout) {
  // At p = 1 nothing is kept, and 1 / 0 would turn 0 * inf into NaN.
  return dropout.probability >= 1.0 ? 0.0 : 1.0 / (1.0 - dropout.probability);
}

at::Tensor unpack_mask(const at::Tensor& mask, at::IntArrayRef shape) {
  const int64_t numel = c10::multiply_integers(shape);
  at::Tensor result = at::empty(shape, at::TensorOptions().dtype(at::kBool));
  const int64_t* words = mask.const_data_ptr<int64_t>();
  bool* out = result.mutable_data_ptr<bool>();
  for (int64_t i = 0; i < numel; ++i) {
    out[i] = ((static_cast<uint64_t>(words[i / kWordBits]) >> (i % kWordBits)) & 1U) != 0;
  }
  return result;
}

}  // namespace nsn::detail
