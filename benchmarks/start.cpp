// From its start to the first answer of a sub-network, by the runtime from C++. start.py runs it,
// and looks at its memory while it waits.

#include <nsn/runtime/session.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

using namespace nsn::runtime;

namespace {

size_t elements(const std::vector<int64_t>& shape) {
  size_t result = 1;
  for (const int64_t extent : shape) result *= static_cast<size_t>(extent);
  return result;
}

}  // namespace

int main(int count, char** given) {
  if (count != 3) {
    std::fprintf(stderr, "Usage: bench_start FILE SUBNETWORK\n");
    return 2;
  }
  try {
    const Model model = Model::open(given[1]);
    const size_t place = model.index_of(given[2]);
    const auto& own = model.subnetworks()[place];
    Session session(model);
    const std::vector<float> input(elements(own.input), 0.5F);
    std::vector<float> output(elements(own.output));
    const Status status = session.run(place, input.data(), output.data());
    if (status != Status::kOk) {
      std::fprintf(stderr, "%s\n", message(status));
      return 1;
    }
    std::printf("answer %.9g\n", static_cast<double>(output[0]));
    std::fflush(stdout);
    std::getchar();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
