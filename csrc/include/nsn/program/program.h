#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <iosfwd>
#include <string>
#include <vector>

#include <nsn/program/primitives.h>
#include <nsn/values/layout.h>
#include <nsn/visibility.h>

// What one sub-network computes in inference: the one form that copies, exports and packs are made
// from. `lower` (description/lower.h) makes it.

namespace nsn {

/// What a step reads of a network's parameters and buffers.
struct Operand {
  /// What the step does with it: "weight", "bias", "running_mean".
  std::string role;
  /// "stage.conv.weight", and its place in Description::parameters(). Steps that share a parameter
  /// have one place.
  std::string name;
  size_t place;
  /// The part of it that is meant; all of a private one.
  Layout slice;
  bool is_buffer = false;
};

/// One operation. Values are numbered: 0 is the input, and the n-th step makes value n, counted
/// from 1.
struct Step {
  /// The path of the block that it is part of, "stage.conv", and what it is there: "linear",
  /// "activation"; empty where it is all of the block.
  std::string block, part;
  Primitive primitive;
  /// Values that are made before.
  std::vector<size_t> inputs;
  std::vector<Operand> operands = {};
  /// What comes out, of one sample; set by Program::add.
  Shape shape = {};

  /// The operand of a role; null where there is none.
  const Operand* operand(const std::string& role) const;
};

/// Steps in the order in which they run, in single-assignment form.
class NSN_API Program {
 public:
  Program(Shape input, at::ScalarType dtype) : input_(std::move(input)), dtype_(dtype) {}

  /// Appends a step, whose shape follows from its inputs and operands, and returns the value that
  /// it makes. Throws c10::ValueError where they do not fit.
  size_t add(Step step);

  /// The shape of one sample, and its dtype.
  const Shape& input() const noexcept { return input_; }
  at::ScalarType dtype() const noexcept { return dtype_; }
  const std::vector<Step>& steps() const noexcept { return steps_; }

  /// The value that is the result: what the last step made, or what `returns` said.
  size_t output() const noexcept { return output_; }
  void returns(size_t value);

  /// Of one sample.
  const Shape& shape_of(size_t value) const;

  /// {"input": {"shape", "dtype"}, "steps": [{"value", "primitive", "block", "part", "inputs",
  /// "attributes", "operands": [{"role", "name", "place", "is_buffer", "view", "kept", "shape"}],
  /// "shape"}], "output"}. An operand is `tensor.view(view)`, cut to the leading `kept`, in
  /// `shape`.
  std::string to_json(int indent = -1) const;

 private:
  Shape input_;
  at::ScalarType dtype_;
  std::vector<Step> steps_;
  size_t output_ = 0;
};

/// For people, one line a step:
///
///     %1 = product(%0, hidden.weight (392 of 784, 784), hidden.bias (392 of 784)) -> (392)
NSN_API std::ostream& operator<<(std::ostream& stream, const Program& program);

}  // namespace nsn
