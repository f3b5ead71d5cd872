// Writes a file without torch: PATH [SEED]. Without a seed, what c_interface.c runs: two widths of
// one perceptron. With one, small networks of random kernels, for the fuzzer to begin with.
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
}
