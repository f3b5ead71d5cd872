#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

#include "nsn/runtime/session.h"
#include "plan/plan.h"

// A libFuzzer target: whatever a runtime file's bytes are, opening it is an error of nsn's or gives
// a model, and what is small enough of it runs.

namespace {

using namespace nsn::runtime;

void run(const Model& model) {
  for (size_t i = 0; i < model.subnetworks().size(); ++i) {
    const auto& own = model.subnetworks()[i];
    const int64_t in = nsn::plan::numel(own.input), out = nsn::plan::numel(own.output);
    if (in + out > (1 << 20) || own.flops > 1e7) return;
  }
  if (Session::bytes_for(model, {2, 1, {}}) > (int64_t{1} << 30)) return;
  Session session(model, {2, 1, {}});
  for (size_t i = 0; i < model.subnetworks().size(); ++i) {
    const auto& own = model.subnetworks()[i];
    std::vector<float> y(static_cast<size_t>(2 * nsn::plan::numel(own.output)));
    const auto in = static_cast<size_t>(2 * nsn::plan::numel(own.input));
    if (own.takes_numbers) {
      session.run(i, std::vector<int64_t>(in, 1).data(), y.data(), 2);
    } else {
      session.run(i, std::vector<float>(in, 0.5F).data(), y.data(), 2);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int file = ::memfd_create("file", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  if (::ftruncate(file, 0) != 0 || ::pwrite(file, data, size, 0) != static_cast<ssize_t>(size)) {
    std::abort();
  }
  try {
    run(Model::open(path));
  } catch (const Error&) {
    return 0;
  }
  return 0;
}
