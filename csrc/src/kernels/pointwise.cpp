#include "kernels/pointwise.h"

#include "kernels/level.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/pointwise.cpp"
#include "kernels/per_level.h"
// After per_level.h.
#include "kernels/columns_inl.h"
#include "kernels/gelu_inl.h"

HWY_BEFORE_NAMESPACE();
namespace nsn::kernels::HWY_NAMESPACE {

namespace {

template <typename D>
HWY_INLINE hn::Vec<D> sigmoid(D d, hn::Vec<D> x) {
  // e^-|x| / (1 + e^-|x|), or one less that.
  const auto e = exp_of_negative(d, hn::Neg(hn::Abs(x)));
  const auto one = hn::Set(d, 1.0F);
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one), hn::Add(one, e));
}

template <typename D>
HWY_INLINE hn::Vec<D> tanh(D d, hn::Vec<D> x) {
  const auto one = hn::Set(d, 1.0F), size = hn::Abs(x);
  const auto e = exp_of_negative(d, hn::Mul(hn::Set(d, -2.0F), size));
  const auto far = hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
  // Near zero that difference loses digits: Cephes' tanhf (Moshier).
  const auto square = hn::Mul(x, x);
  auto p = hn::Set(d, -5.70498872745e-3F);
  p = hn::MulAdd(p, square, hn::Set(d, 2.06390887954e-2F));
  p = hn::MulAdd(p, square, hn::Set(d, -5.37397155531e-2F));
  p = hn::MulAdd(p, square, hn::Set(d, 1.33314422036e-1F));
  p = hn::MulAdd(p, square, hn::Set(d, -3.33332819422e-1F));
  const auto near = hn::MulAdd(hn::Mul(p, square), x, x);
  return hn::IfThenElse(hn::Lt(size, hn::Set(d, 0.625F)), near, far);
}

template <Function function, typename D>
HWY_INLINE hn::Vec<D> apply_to(D d, hn::Vec<D> x) {
  if constexpr (function == Function::kRelu) {
    // "not <= 0" and not "> 0": NaN passes, as through torch's ReLU.
    return hn::IfThenZeroElse(hn::Le(x, hn::Zero(d)), x);
  } else if constexpr (function == Function::kGelu) {
    hn::Vec<D> slope;
    return gelu(d, x, slope);
  } else if constexpr (function == Function::kSilu) {
    return hn::Mul(x, sigmoid(d, x));
  } else if constexpr (function == Function::kSigmoid) {
    return sigmoid(d, x);
  } else {
    return tanh(d, x);
  }
}

template <Function function>
HWY_INLINE void apply_all(const Apply& pass) {
  over_columns(pass.count, [&](auto d, int64_t at) HWY_ATTR {
    auto y = apply_to<function>(d, hn::LoadU(d, pass.x + at));
    if (pass.times != nullptr) y = hn::Mul(y, hn::LoadU(d, pass.times + at));
    hn::StoreU(y, d, pass.out + at);
  });
}

}  // namespace

void apply_function(const Apply& pass) {
  switch (pass.function) {
    case Function::kRelu:
      return apply_all<Function::kRelu>(pass);
    case Function::kGelu:
      return apply_all<Function::kGelu>(pass);
    case Function::kSilu:
      return apply_all<Function::kSilu>(pass);
    case Function::kSigmoid:
      return apply_all<Function::kSigmoid>(pass);
    default:
      return apply_all<Function::kTanh>(pass);
  }
}

void add_all(const Sum& pass) {
  over_columns(pass.count, [&](auto d, int64_t at) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(d, pass.a + at), hn::LoadU(d, pass.b + at)), d, pass.out + at);
  });
}

void scale_rows(const ScaleRows& pass) {
  const auto over_rows = [&](const auto& scaled) HWY_ATTR {
    for (int64_t row = 0; row < pass.rows; ++row) {
      over_columns(pass.columns, [&](auto d, int64_t at) HWY_ATTR {
        const int64_t place = row * pass.columns + at;
        hn::StoreU(scaled(d, hn::LoadU(d, pass.x + place), at), d, pass.out + place);
      });
    }
  };
  const float *scale = pass.scale, *shift = pass.shift;
  if (scale == nullptr && shift == nullptr) {
    over_rows([](auto /*d*/, auto x, int64_t /*at*/) HWY_ATTR { return x; });
  } else if (shift == nullptr) {
    over_rows([=](auto d, auto x, int64_t at)
                  HWY_ATTR { return hn::Mul(hn::LoadU(d, scale + at), x); });
  } else if (scale == nullptr) {
    over_rows([=](auto d, auto x, int64_t at)
                  HWY_ATTR { return hn::Add(hn::LoadU(d, shift + at), x); });
  } else {
    over_rows([=](auto d, auto x, int64_t at) HWY_ATTR {
      return hn::MulAdd(hn::LoadU(d, scale + at), x, hn::LoadU(d, shift + at));
    });
  }
}

}  // namespace nsn::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nsn::kernels {

void run(const Apply& pass) { NSN_AT_LEVEL(apply_function)(pass); }
void run(const Sum& pass) { NSN_AT_LEVEL(add_all)(pass); }
void run(const ScaleRows& pass) { NSN_AT_LEVEL(scale_rows)(pass); }

}  // namespace nsn::kernels
#endif
