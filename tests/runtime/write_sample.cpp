// Writes a file without torch: PATH [SEED [FOLDER]]. Without a seed, what c_interface.c runs: two
// widths of one perceptron. With one, small networks of random kernels, for the fuzzer to begin
// with. With a folder, inputs too, there as NAME.input.
#include <cstdlib>

#include "sample.h"

int main(int count, char** arguments) {
  nsn::test::Sample sample(count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1);
  if (count > 2) {
    sample.network("random", sample.integer(1, 40), sample.integer(1, 8));
    sample.transformer("text", 5, 2, 4, sample.chance(0.5));
  } else {
    sample.mlp({24, 60}, 12, 5);
  }
  nsn::test::write(arguments[1], sample.bytes());
  if (count <= 3) return 0;
  for (const auto& network : sample.file().networks) {
    const int64_t numbers = 7 * nsn::plan::numel(network.plan.values[0].shape);
    std::string bytes;
    const auto append = [&](const auto& number) {
      bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
    };
    if (network.name == "text") {
      for (int64_t i = 0; i < numbers; ++i) append(sample.integer(0, 19));
    } else {
      for (const float each : sample.numbers(numbers)) append(each);
    }
    nsn::test::write(std::string(arguments[3]) + "/" + network.name + ".input", bytes);
  }
}
