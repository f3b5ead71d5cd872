#pragma once

#include <gtest/gtest.h>
#include <nsn/nsn.h>
#include <torch/autograd.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

// What the tests share: random networks, and the same networks computed one sub-network at a time
// by plain torch operations and plain autograd, with none of the library's own arithmetic.

namespace nsn::test {

/// Expects that `call` throws an Error whose message has each of `parts`.
template <typename Error = c10::ValueError, typename Call>
void expect_throws_with(const Call& call, const std::vector<std::string>& parts,
                        const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const std::string place = std::string(file) + ':' + std::to_string(line) + ": ";
  try {
    call();
  } catch (const Error& error) {
    const std::string message = error.what_without_backtrace();
    for (const std::string& part : parts) {
      EXPECT_NE(message.find(part), std::string::npos)
          << place << "expected '" << part << "' in the message: " << message;
    }
    return;
  } catch (const std::exception& error) {
    ADD_FAILURE() << place << "another kind of error: " << error.what();
    return;
  }
  ADD_FAILURE() << place << "no error, but expected one with '" << (parts.empty() ? "" : parts[0])
                << "'";
}

/// Expects equal shapes and dtypes, and |a - b| <= tolerance * (1 + |b|); both undefined is equal.
void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance,
                  const std::string& what = "tensors");

/// Expects the same shape, dtype and bits (so NaN equals itself).
void expect_same_bits(const at::Tensor& actual, const at::Tensor& expected,
                      const std::string& what = "tensors");

/// A seeded source of choices, apart from torch's generators.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  double real(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(engine_);
  }
  bool chance(double probability) { return real(0.0, 1.0) < probability; }
  template <typename T>
  T pick(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(integer(0, static_cast<int64_t>(choices.size()) - 1))];
  }
  template <typename T>
  void shuffle(std::vector<T>& values) {
    std::shuffle(values.begin(), values.end(), engine_);
  }

 private:
  std::mt19937_64 engine_;
};

/// The seed that the next training pass will draw, without drawing it.
uint64_t next_pass_seed();

/// Number of threads while it lives.
class Threads {
 public:
  explicit Threads(int count) : before_(at::get_num_threads()) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

// -------------------------------------------------------------------------------------------------
// Rules, and the tests' own idea of them.

/// The rules that `make_rule` knows: all of nsn's, "ramp" (a function rule that is linear: the
/// first lane's gradient once, the second's twice, ...) and "median" (element-wise, of the lower
/// kind).
const std::vector<std::string>& rule_names();

/// Those of nsn's that have coefficients.
std::vector<std::string> linear_rule_names();

/// The rule of that name; `subnetworks` get random coefficients where it is "weighted".
merge::Rule make_rule(const std::string& name, const std::vector<std::string>& subnetworks,
                      Random& random);

/// A lane's use of one whole parameter.
struct PlainUse {
  std::string name;
  int64_t parameter_count = 0;  // of the sub-network
  size_t declared = 0;          // its place in the description
  at::Tensor gradient;          // undefined: it entered no loss
};

/// The rule, by its name, applied to whole gradients; undefined where all are.
at::Tensor merge_plainly(const merge::Rule& rule, const std::vector<PlainUse>& uses);

// -------------------------------------------------------------------------------------------------
// Networks.

/// A random network, a batch for it, and the lanes of one joint pass.
struct Case {
  Network net{nullptr};
  at::Tensor x;
  std::vector<std::string> lanes;
  /// The weight of each lane's loss; none where the lane enters no loss.
  std::vector<std::optional<double>> weights;
};

/// One to five blocks, of which sub-networks drop some at the input side, in the middle and at the
/// output side; float64. The network's rule is `rule`, some blocks override it. Some parameters are
/// frozen, and the network may be in training mode, with dropout.
Case random_case(uint64_t seed, const std::string& rule);

/// Two hidden layers and an output of width 5, 5, 3 from 5; sub1 drops the first, sub2 both. ReLU,
/// no dropout unless given.
NetworkOptions small_options(const merge::Rule& rule = merge::sum(), double dropout = 0.0,
                             at::ScalarType dtype = at::kDouble);

/// A loss that tells elements and lanes apart and has a second derivative: a scalar.
at::Tensor lane_loss(const at::Tensor& output, size_t lane);

/// The output of one sub-network by plain torch operations. `parameters` are those of all blocks;
/// `seed` is that of the training pass, none in evaluation.
at::Tensor plain_forward(const Core& core, at::TensorList parameters, const at::Tensor& x,
                         const std::string& subnetwork, std::optional<uint64_t> seed);

/// Gradients of all parameters and of the input; undefined where there is none.
struct Gradients {
  std::vector<at::Tensor> parameters;
  at::Tensor input;
};

/// What one pass over `test` should bring: each lane's gradients by plain autograd over copies of
/// its own, merged by `merge_plainly`; the input's are added up.
Gradients reference_gradients(const Case& test, std::optional<uint64_t> seed);

/// The merged gradients, from gradients of all parameters for each lane of `lanes`.
std::vector<at::Tensor> merge_all_plainly(const Description& description,
                                          const std::vector<std::string>& lanes,
                                          const std::vector<std::vector<at::Tensor>>& gradients);

/// sum_l w_l * lane_loss(output_l) over the lanes that have a weight; undefined if none has.
at::Tensor total_loss(const Case& test, const Outputs& outputs);

/// Puts the parameters' gradients away, undefined ones included.
std::vector<at::Tensor> take_gradients(const Network& net);

/// A path for a test's files, in a directory of the test program's own that is removed at its end.
std::string temporary_path(const std::string& name);

/// The names in the directory of `temporary_path`.
std::vector<std::string> temporary_files();

}  // namespace nsn::test
