#include "network/input.h"

#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <string>

namespace nsn::detail {

void check_input(const at::Tensor& x, const Shape& shape, at::ScalarType dtype,
                 const std::string& who) {
  TORCH_CHECK_VALUE(x.defined(), "nsn::", who, ": the input is an undefined tensor. Pass a batch.");
  TORCH_CHECK_VALUE(!x.is_nested(), "nsn::", who,
                    ": the input is a nested tensor, whose samples differ in shape. Make a batch "
                    "of it with to_padded_tensor().");
  TORCH_CHECK_VALUE(x.layout() == at::kStrided, "nsn::", who, ": the input is of layout ",
                    x.layout(), ", and a batch has to be dense. Convert it with to_dense().");
  const bool fits = x.dim() == static_cast<int64_t>(shape.size()) + 1 &&
                    x.sizes().slice(1) == at::IntArrayRef(shape);
  if (!fits) {
    std::string extents;
    for (const int64_t extent : shape) extents += ", " + std::to_string(extent);
    const int64_t numel = c10::multiply_integers(shape);
    const bool is_sample = x.sizes() == at::IntArrayRef(shape);
    const bool is_reshaped = x.dim() > 0 && x.numel() == x.size(0) * numel;
    const std::string remedy =
        is_sample                          ? "For a single sample use unsqueeze(0)"
        : is_reshaped && shape.size() == 1 ? "Reshape the batch with flatten(1)"
        : is_reshaped                      ? "Reshape the batch to (-1" + extents + ")"
        : x.dim() == static_cast<int64_t>(shape.size()) + 1
            ? "Bring the samples to that size, for example with interpolate, or describe a network "
              "of theirs"
            : "Give samples of that shape, with the batch in front";
    TORCH_CHECK_VALUE(false, "nsn::", who, ": expected input of shape (B", extents,
                      "), a batch of samples, but got ", to_string(x.sizes().vec()), ". ", remedy,
                      ".");
  }
  TORCH_CHECK_VALUE(at::isFloatingType(x.scalar_type()) == at::isFloatingType(dtype), "nsn::", who,
                    ": expected input of dtype ", dtype, ", but got ", x.scalar_type(),
                    ". Convert the batch with to().");
}

}  // namespace nsn::detail
