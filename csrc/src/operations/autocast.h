#pragma once

#include <ATen/autocast_mode.h>

#include <optional>

namespace nsn::detail {

/// The dtype in which autocast wants products of `tensor` to run; none where it is off, and for
/// float64, which it leaves alone.
inline std::optional<at::ScalarType> autocast_dtype(const at::Tensor& tensor) {
  const auto device = tensor.device().type();
  if (tensor.scalar_type() == at::kDouble || !at::autocast::is_autocast_available(device) ||
      !at::autocast::is_autocast_enabled(device)) {
    return std::nullopt;
  }
  return at::autocast::get_autocast_dtype(device);
}

/// Keeps autocast from casting again what an operation casts itself.
struct WithoutAutocast {
  explicit WithoutAutocast(at::DeviceType device) {
    if (at::autocast::is_autocast_available(device)) {
      guard.emplace(
          c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
    }
  }
  std::optional<c10::impl::ExcludeDispatchKeyGuard> guard;
};

}  // namespace nsn::detail
