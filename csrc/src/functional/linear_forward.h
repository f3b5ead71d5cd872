#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "functional/masks.h"
#include "functional/sources.h"
#include "nsn/functional/linear.h"

// The forward of functional::linear: which lanes are stacked into one product, and what follows it.

namespace nsn::detail {

/// Sources of one slice, stacked into one product.
using Stack = std::vector<size_t>;

struct LinearSpec {
  std::vector<merge::Lane> lanes;
  merge::Rule rule;
  functional::ReluDropout after;
  bool gelu = false;  // in place of `after`, whose dropout is then none
  functional::Memory memory;
  std::optional<at::ScalarType> autocast;  // the dtype that the products run in
  SliceView weight, bias;
  std::vector<int64_t> out, in;  // of each lane's slice as a matrix
  std::vector<Source> sources;
  std::vector<size_t> source_of;  // lane
  std::vector<Stack> stacks;

  bool is_leading() const { return weight.view.size() == 2; }
};

/// Where the rows of a source lie in the stacked input of its stack.
struct StackedRows {
  size_t stack;
  int64_t first, count;
};

struct LinearForward {
  variable_list outputs;          // one a lane
  variable_list stacked;          // the inputs of each stack, on top of each other
  at::Tensor weight;              // as multiplied
  std::vector<StackedRows> rows;  // one a source
};

LinearSpec make_spec(const at::Tensor& weight, const functional::SharedLanes& of,
                     const functional::ReluDropout& after, const functional::Memory& memory);

/// The slice of a lane as a matrix (kept out, kept in): strided where it is leading, else a copy.
at::Tensor matrix_of(const LinearSpec& spec, const at::Tensor& weight, size_t lane);

/// The same of a bias.
at::Tensor bias_of(const LinearSpec& spec, const at::Tensor& bias, size_t lane);

/// In another dtype where one is given.
at::Tensor cast(const at::Tensor& tensor, std::optional<at::ScalarType> dtype);

/// `masks`, where given, gets what the backward of the element-wise part needs.
LinearForward forward_of(const LinearSpec& spec, at::TensorList inputs, const at::Tensor& weight,
                         const at::Tensor& bias, Masks* masks);

}  // namespace nsn::detail
