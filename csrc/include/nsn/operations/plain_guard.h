#pragma once

#include <nsn/visibility.h>

namespace nsn::functional {

/// While one lives, the operations and losses of this thread compute by ATen operations alone, as
/// they do off the CPU, in place of nsn's own kernels: to test these, or to look for a fault.
class NSN_API PlainGuard {
 public:
  PlainGuard();
  ~PlainGuard();
  PlainGuard(const PlainGuard&) = delete;
  PlainGuard& operator=(const PlainGuard&) = delete;

 private:
  bool before_;
};

}  // namespace nsn::functional
