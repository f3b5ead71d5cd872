#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <nsn/visibility.h>

// Merge rules: how the lanes' gradients of a shared parameter become one gradient.
//
// A rule acts per element, on the lanes of the pass whose slice covers that element, whether or not
// their output entered the loss: a lane without a gradient counts as zero, and where no lane has a
// gradient there is none. So coefficients may differ from one region of a parameter to the next.
//
// A narrow lane covers the leading part of a parameter alone. With `mean`, of a full lane and one
// that keeps 1 x 2 of a 2 x 2 weight, whose gradients are
//
//     full [[2, 4],    narrow [[6, 8]]    merged [[(2 + 6) / 2, (4 + 8) / 2],  =  [[4, 6],
//           [6, 8]]                               [6 / 1,       8 / 1      ]]      [6, 8]]
//
// since the full lane is the only one that has the second row. Slices may cross.
//
// Worked example for all rules below: a weight w that the lanes base, sub1 and sub2 share, with
// gradients 6, 3 and 1 at some element that all three cover; sub2 is the smallest, base the
// largest.

namespace nsn::merge {

/// The leading part of a tensor that a lane uses: one extent per dimension, `w[:s0, :s1, ...]`.
using Slice = std::vector<int64_t>;

/// A lane as the rules see it: its sub-network's name, and what tells the smaller of two.
struct Lane {
  std::string name;
  /// How many parameters it uses.
  int64_t size = 0;
  /// Of two of one size the one whose place comes first is the smaller: the order of declaration.
  size_t place = 0;

  bool is_smaller_than(const Lane& other) const {
    return size != other.size ? size < other.size : place < other.place;
  }
};

/// What a rule that is not linear gets of one lane.
struct NSN_API LaneGradient {
  std::string name;
  /// The part of the parameter that the lane used.
  Slice slice;
  /// The lane's gradient, of shape `slice`; zeros where the lane entered no loss.
  at::Tensor gradient;
  /// The shape of the whole parameter, which is what the rule returns.
  Slice parameter_shape;

  /// The gradient in the parameter's full shape, with zeros where the lane does not reach: what
  /// gradients of lanes of different widths are added or compared in.
  at::Tensor padded() const;
};

/// Takes the gradients of all lanes that used one parameter, in the order in which the pass named
/// them, and returns the merged gradient in the parameter's full shape.
using MergeFunction = std::function<at::Tensor(const std::vector<LaneGradient>&)>;

/// A merge rule: a value that is cheap to copy. Made by the functions below.
class NSN_API Rule {
 public:
  /// The rule's name, as in JSON: "sum", "mean", ..., or the name given to `function`.
  const std::string& name() const;

  /// Whether the merged gradient is sum_l c_l * gradient_l with coefficients that depend on
  /// nothing but which lanes cover the element. Others are functions of all lanes' gradients.
  bool is_linear() const;

  /// Whether the library knows the rule, so that files hold all of it. True for all but `function`.
  bool is_builtin() const;

  /// Whether this is a function rule that was read from a file, which cannot hold the function.
  bool is_missing() const;

  /// The coefficient of each of `lanes`, which all cover the element in question.
  /// Linear rules only; throws c10::ValueError for others or an unknown lane.
  std::vector<double> coefficients(c10::ArrayRef<Lane> lanes) const;

  /// Calls a rule that is not linear and checks the shape of what it returns.
  at::Tensor call(const std::vector<LaneGradient>& gradients) const;

  /// The function given to `function`; empty for other rules.
  const MergeFunction& merge_function() const;

  /// The coefficients of a `weighted` rule, in the order given; empty for other rules.
  const std::vector<std::pair<std::string, double>>& weights() const;

 private:
  struct Definition;
  explicit Rule(std::shared_ptr<const Definition> definition);
  friend struct Factory;
  std::shared_ptr<const Definition> definition_;
};

/// The plain derivative of the summed loss: 6 + 3 + 1 = 10. What autograd would do.
NSN_API Rule sum();

/// The mean over the lanes that cover the element: (6 + 3 + 1) / 3.
/// Where just base and sub1 cover it: (6 + 3) / 2; where base alone does: 6.
NSN_API Rule mean();

/// The mean of the two smallest lanes; larger lanes' gradients are dropped: (3 + 1) / 2 = 2.
/// Where just base and sub1 cover it: (6 + 3) / 2; where base alone does: 6.
/// Source: "Networks with Sub-Networks" (Fuengfusin & Tamukoh, ICAROB 2020).
NSN_API Rule two_smallest_mean();

/// The gradient of the smallest lane alone: 1. Where just base and sub1 cover it: 3.
NSN_API Rule owner();

/// The sum of the gradients, of each of which is taken away what points against another one: where
/// g_i . g_j < 0, over what both slices cover, g_i loses its part along g_j. Not linear, and of a
/// whole parameter at a time, not of the whole network. With the gradients (1, 1) and (-1, 0) the
/// former becomes (0, 1), the latter (-0.5, 0.5), their sum (-0.5, 1.5). The most conflicting one
/// is taken first. Source: PCGrad, Yu et al., "Gradient Surgery for Multi-Task Learning", 2020,
/// which takes them in random order.
NSN_API Rule gradient_surgery();

/// The mean over the lanes that cover the element, each lane's gradient scaled to the same root
/// mean square over its slice, the mean of all that are more than rounding: of the numbers above 10
/// / 3 for each, so 10 / 3. Not linear, and of a whole parameter at a time. Source: the aim of
/// GradNorm (Chen et al., 2018), reached at once instead of by learned weights.
NSN_API Rule equal_norms();

/// sum_l c_l * gradient_l with a coefficient for each sub-network. With {base: 0.5, sub1: 1,
/// sub2: 2}: 0.5 * 6 + 1 * 3 + 2 * 1 = 8. Not divided by the sum of the coefficients.
/// Each sub-network that uses the parameter must be named.
NSN_API Rule weighted(std::vector<std::pair<std::string, double>> coefficients);

/// Any function of the lanes' gradients, linear or not, for example their median: 3.
/// It runs inside backward, once for each parameter. A file holds no more of it than `name`.
NSN_API Rule function(std::string name, MergeFunction function);

/// Stands for a function rule whose function is not at hand (it was read from a file): inference
/// works, and a joint pass that needs gradients throws and says how to supply the function.
NSN_API Rule missing_function(std::string name);

/// Applies `rule` to one gradient per lane, each of the shape of the lane's slice; undefined counts
/// as zero. Returns one tensor of `shape`: one buffer, no other temporary of that size for linear
/// rules; elements that no lane covers are exact zeros. All undefined gives undefined.
NSN_API at::Tensor apply(const Rule& rule, c10::ArrayRef<Lane> lanes, c10::ArrayRef<Slice> slices,
                         at::TensorList gradients, at::IntArrayRef shape);

}  // namespace nsn::merge
