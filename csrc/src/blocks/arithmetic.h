#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "nsn/blocks/block.h"
#include "nsn/blocks/lowering.h"
#include "nsn/functional/activation.h"
#include "nsn/functional/convolution.h"

// Products and convolutions with what follows them, as blocks ask for them: in a joint pass over
// all lanes, and as steps of one sub-network's program. How much of the epilogue is one pass over
// memory is decided here.

namespace nsn::detail {

/// The place of the weight among a block's parameters, of those that multiply by one.
constexpr size_t kWeight = 0;

/// What follows a product or convolution, one element at a time: dropout(activation(scale * y +
/// bias)).
struct Epilogue {
  /// Places of the block's parameters; none where there is none.
  std::optional<size_t> scale = std::nullopt, bias = std::nullopt;
  Activation activation = torch::enumtype::kLinear();
  /// The block's own probability, in place of which a sub-network may have another. Default: none,
  /// nothing is dropped here.
  std::optional<double> dropout = std::nullopt;
};

/// y_l = after(x_l W_l^T) for each lane, W being the block's parameter `weight`. `same_as` says
/// which lanes have the same input (functional::SharedLanes), `memory` where the results may lie.
Lanes product(const Lanes& inputs, const BlockPass& pass, size_t weight, const Epilogue& after,
              std::vector<size_t> same_as, const functional::Memory& memory);

/// y_l = after(W_l * x_l) for each lane; `in_groups` where W reads a part of the channels at a
/// time.
Lanes convolution(const Lanes& inputs, const BlockPass& pass, size_t weight,
                  const functional::ConvGeometry& geometry, bool in_groups, const Epilogue& after);

/// y_l = after(y_l) along dimension `dim`, by itself.
Lanes finish(Lanes y, const BlockPass& pass, const Epilogue& after, int64_t dim);

/// The same as steps, the first of which is called `part`. Steps that do nothing are left out.
size_t lower_product(Lowering& to, const char* part, size_t x, size_t weight,
                     const Epilogue& after);
size_t lower_convolution(Lowering& to, size_t x, size_t weight,
                         const functional::ConvGeometry& geometry, const Epilogue& after);
size_t lower_finish(Lowering& to, size_t y, const Epilogue& after, int64_t dim);

/// A dropout as the sub-network has it in place of the block's own, where it drops at all.
size_t lower_dropout(Lowering& to, size_t y, std::optional<double> standard);

}  // namespace nsn::detail
