#include "operations/workspace.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <c10/core/Allocator.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <utility>

#include "operations/lanes.h"

namespace nsn {

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kReuses = false;  // a use after free is to be found
#else
constexpr bool kReuses = true;
#endif

/// For the profiler an idle block is free: without this a step would seem to allocate nothing.
void report(const c10::DataPtr& memory, int64_t bytes) {
  if (c10::memoryProfilingEnabled()) {
    c10::reportMemoryUsageToProfiler(memory.get(), bytes, 0, 0, c10::Device(c10::kCPU));
  }
}

}  // namespace

/// A block in use; its end brings the memory back.
struct Workspace::Lease {
  std::weak_ptr<Workspace> owner;
  c10::DataPtr memory;
  size_t bytes;

  static void end(void* lease) {
    const std::unique_ptr<Lease> ended(static_cast<Lease*>(lease));
    if (const auto owner = ended->owner.lock()) {
      owner->take_back(std::move(ended->memory), ended->bytes);
    }
  }
};

Workspace::~Workspace() {
  for (const Idle& block : idle_) report(block.memory, static_cast<int64_t>(block.bytes));
}

void Workspace::begin_pass() {
  std::vector<Idle> unused;  // freed after the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  ++pass_;
  const auto keep = std::partition(idle_.begin(), idle_.end(),
                                   [&](const Idle& block) { return block.freed_in + 1 >= pass_; });
  std::move(keep, idle_.end(), std::back_inserter(unused));
  idle_.erase(keep, idle_.end());
  for (const Idle& block : unused) report(block.memory, static_cast<int64_t>(block.bytes));
}

at::Tensor Workspace::empty(at::IntArrayRef sizes, const at::TensorOptions& options,
                            functional::Room* room) {
  const int64_t numel = c10::multiply_integers(sizes), behind = room == nullptr ? 0 : room->numel;
  const size_t bytes = static_cast<size_t>(numel + behind) * options.dtype().itemsize();
  if (bytes == 0 || !options.device().is_cpu()) return at::empty(sizes, options);
  c10::DataPtr memory;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    // The last one freed is the likeliest to be in a cache.
    const auto found = std::find_if(idle_.rbegin(), idle_.rend(),
                                    [&](const Idle& block) { return block.bytes == bytes; });
    if (found != idle_.rend()) {
      memory = std::move(found->memory);
      idle_.erase(std::next(found).base());
    }
  }
  if (memory) {
    report(memory, static_cast<int64_t>(bytes));
  } else {
    memory = at::getCPUAllocator()->allocate(bytes);
  }
  void* data = memory.get();
  auto* lease = new Lease{weak_from_this(), std::move(memory), bytes};
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes,
                       c10::DataPtr(data, lease, &Lease::end, c10::Device(c10::kCPU)),
                       at::getCPUAllocator(), /*resizable=*/true);
  at::Tensor result = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), options.dtype());
  result.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  if (behind > 0) room->behind = detail::part(result, numel, {behind});
  return result;
}

size_t Workspace::idle_bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t total = 0;
  for (const Idle& block : idle_) total += block.bytes;
  return total;
}

void Workspace::take_back(c10::DataPtr memory, size_t bytes) {
  if (!kReuses) return;
  report(memory, -static_cast<int64_t>(bytes));
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back({std::move(memory), bytes, pass_});
}

at::Tensor detail::empty_in(const functional::Memory& memory, at::IntArrayRef sizes,
                            const at::TensorOptions& options) {
  return memory.workspace ? memory.workspace->empty(sizes, options, memory.room)
                          : at::empty(sizes, options);
}

}  // namespace nsn
