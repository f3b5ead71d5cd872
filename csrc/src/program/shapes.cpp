#include "program/shapes.h"

#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <string>

namespace nsn::detail {

namespace {

using namespace primitives;  // NOLINT(google-build-using-namespace)

/// What each primitive makes of the shapes that it reads. Samples have no batch: their channels are
/// dimension 0.
class ShapeOf {
 public:
  ShapeOf(const Step& step, const std::vector<Shape>& inputs) : step_(step), inputs_(inputs) {
    const size_t least = 1, most = std::holds_alternative<Add>(step.primitive) ? 2 : 1;
    check(inputs.size() >= least && inputs.size() <= most,
          "reads " + std::to_string(inputs.size()) + " values");
  }

  Shape operator()(const Product& /*p*/) const {
    const Shape weight = tensor("weight", 2);
    Shape result = input(1);
    check(result.back() == weight[1], "reads " + to_string(result));
    result.back() = weight[0];
    vector("bias", weight[0]);
    return result;
  }

  Shape operator()(const Convolution& p) const {
    const size_t dims = p.stride.size();
    const Shape x = exactly(dims + 1), weight = tensor("weight", dims + 2);
    check(p.padding.size() == dims && p.dilation.size() == dims && p.groups >= 1 &&
              x[0] == weight[1] * p.groups && weight[0] % p.groups == 0,
          "reads " + to_string(x));
    vector("bias", weight[0]);
    Shape result{weight[0]};
    for (const size_t d : c10::irange(dims)) {
      const int64_t reach = p.dilation[d] * (weight[d + 2] - 1);
      result.push_back(positions(x[d + 1] + 2 * p.padding[d] - reach - 1, p.stride[d]));
    }
    return result;
  }

  Shape operator()(const TransposedConvolution& p) const {
    const Shape x = exactly(3), weight = tensor("weight", 4);
    check(x[0] == weight[0], "reads " + to_string(x));
    vector("bias", weight[1]);
    Shape result{weight[1]};
    for (const size_t d : c10::irange(2)) {
      result.push_back((x[d + 1] - 1) * p.stride.at(d) - 2 * p.padding.at(d) +
                       p.dilation.at(d) * (weight[d + 2] - 1) + p.output_padding.at(d) + 1);
    }
    return result;
  }

  Shape operator()(const Pad& p) const {
    Shape result = input(1);
    result.back() += p.before;
    return result;
  }

  Shape operator()(const MaxPool& p) const { return pooled(p); }
  Shape operator()(const AveragePool& p) const { return pooled(p); }

  Shape operator()(const GlobalAverage& /*p*/) const { return {input(2)[0]}; }

  Shape operator()(const Upsample& p) const {
    Shape result = exactly(3);
    result[1] *= p.factor;
    result[2] *= p.factor;
    return result;
  }

  Shape operator()(const LayerNorm& /*p*/) const { return affine(input(1), input(1).back()); }
  Shape operator()(const RMSNorm& /*p*/) const { return affine(input(1), input(1).back()); }

  Shape operator()(const GroupNorm& p) const {
    check(p.groups >= 1 && input(1)[0] % p.groups == 0, "reads " + to_string(input(1)));
    return affine(input(1), input(1)[0]);
  }

  Shape operator()(const BatchNorm& /*p*/) const {
    const int64_t features = input(1)[0];
    check(vector("running_mean", features) && vector("running_var", features),
          "lacks running_mean or running_var");
    return affine(input(1), features);
  }

  Shape operator()(const ScaleAndShift& p) const {
    const Shape x = input(1);
    const auto dims = static_cast<int64_t>(x.size()) + 1;
    const int64_t dimension = p.dimension < 0 ? p.dimension + dims : p.dimension;
    check(dimension >= 1 && dimension < dims, "has dimension " + std::to_string(p.dimension));
    const int64_t features = x[static_cast<size_t>(dimension - 1)];
    vector("scale", features);
    vector("bias", features);
    return x;
  }

  Shape operator()(const Activate& p) const {
    check(!is_gated(p.function), "has the gated function " + to_string(p.function));
    return inputs_[0];
  }

  Shape operator()(const Gate& p) const {
    Shape result = input(1);
    const auto dims = static_cast<int64_t>(result.size()) + 1;
    const int64_t dimension = p.dimension < 0 ? p.dimension + dims : p.dimension;
    check(dimension >= 1 && dimension < dims && is_gated(p.function),
          "has the function " + to_string(p.function));
    int64_t& extent = result[static_cast<size_t>(dimension - 1)];
    check(extent % 2 == 0, "reads " + to_string(inputs_[0]));
    extent /= 2;
    return result;
  }

  Shape operator()(const Drop& /*p*/) const { return inputs_[0]; }

  Shape operator()(const Add& /*p*/) const {
    const Shape& x = inputs_[0];
    if (inputs_.size() == 2) {
      check(inputs_[1] == x, "reads " + to_string(x) + " and " + to_string(inputs_[1]));
    } else {
      check(tensor("weight", x.size()) == x, "reads " + to_string(x));
    }
    return x;
  }

  Shape operator()(const Reshape& p) const {
    check(c10::multiply_integers(p.shape) == c10::multiply_integers(inputs_[0]),
          "reads " + to_string(inputs_[0]));
    return p.shape;
  }

  Shape operator()(const Embed& /*p*/) const {
    Shape result = inputs_[0];
    result.push_back(tensor("weight", 2)[1]);
    return result;
  }

  Shape operator()(const Attend& p) const {
    Shape result = exactly(2);
    check(p.heads >= 1 && result[1] % (3 * p.heads) == 0, "reads " + to_string(result));
    result[1] /= 3;
    return result;
  }

  Shape operator()(const Call& /*p*/) const { return step_.shape; }

 private:
  template <typename Pool>
  Shape pooled(const Pool& p) const {
    const size_t dims = p.kernel.size();
    Shape result = exactly(dims + 1);
    for (const size_t d : c10::irange(dims)) {
      result[d + 1] = positions(result[d + 1] + 2 * p.padding.at(d) - p.kernel[d], p.stride.at(d));
    }
    return result;
  }

  int64_t positions(int64_t room, int64_t stride) const {
    check(room >= 0 && stride >= 1, "has no room for its kernel in " + to_string(inputs_[0]));
    return room / stride + 1;
  }

  /// The input, of at least so many dimensions.
  const Shape& input(size_t least) const {
    check(inputs_[0].size() >= least, "reads " + to_string(inputs_[0]));
    return inputs_[0];
  }
  const Shape& exactly(size_t dims) const {
    check(inputs_[0].size() == dims, "reads " + to_string(inputs_[0]));
    return inputs_[0];
  }

  Shape tensor(const std::string& role, size_t dims) const {
    const Operand* operand = step_.operand(role);
    check(operand != nullptr, "lacks its " + role);
    Shape shape = kept_shape(operand->slice);
    check(shape.size() == dims, "has " + role + " " + to_string(shape));
    return shape;
  }

  /// Whether there is one; it then has so many elements.
  bool vector(const std::string& role, int64_t extent) const {
    if (step_.operand(role) == nullptr) return false;
    const Shape shape = tensor(role, 1);
    check(shape[0] == extent, "has " + role + " " + to_string(shape));
    return true;
  }

  Shape affine(const Shape& x, int64_t features) const {
    vector("weight", features);
    vector("bias", features);
    return x;
  }

  void check(bool fits, const std::string& found) const {
    TORCH_CHECK_VALUE(fits, "nsn::Program: the step '", name_of(step_.primitive), "' of block '",
                      step_.block, "' ", found,
                      ", which does not fit. Give it inputs, operands and attributes as "
                      "nsn/program/primitives.h has them.");
  }

  const Step& step_;
  const std::vector<Shape>& inputs_;
};

}  // namespace

Shape shape_of_step(const Step& step, const std::vector<Shape>& inputs) {
  return std::visit(ShapeOf(step, inputs), step.primitive);
}

}  // namespace nsn::detail
