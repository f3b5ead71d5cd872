#include "support.h"

#include <ATen/CPUGeneratorImpl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "values/rules.h"

namespace nsn::test {

void expect_close(const at::Tensor& actual, const at::Tensor& expected, double tolerance,
                  const std::string& what) {
  ASSERT_EQ(actual.defined(), expected.defined()) << what;
  if (!actual.defined()) return;
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type()) << what;
  EXPECT_TRUE(at::allclose(actual, expected, tolerance, tolerance)) << what << ": got\n"
                                                                    << actual << "\ninstead of\n"
                                                                    << expected;
}

void expect_same_bits(const at::Tensor& actual, const at::Tensor& expected,
                      const std::string& what) {
  ASSERT_EQ(actual.defined(), expected.defined()) << what;
  if (!actual.defined()) return;
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type()) << what;
  if (actual.numel() == 0) return;
  const at::Tensor a = actual.detach().contiguous(), b = expected.detach().contiguous();
  EXPECT_EQ(std::memcmp(a.data_ptr(), b.data_ptr(), a.nbytes()), 0) << what << ": got\n"
                                                                    << actual << "\ninstead of\n"
                                                                    << expected;
}

uint64_t next_pass_seed() {
  const at::Generator copy = at::detail::getDefaultCPUGenerator().clone();
  return at::check_generator<at::CPUGeneratorImpl>(copy)->random64();
}

const std::vector<std::string>& rule_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> result;
    for (const merge::KnownRule& rule : merge::known_rules()) {
      if (rule.takes != merge::Takes::kFunction) result.emplace_back(rule.name);
    }
    result.insert(result.end(), {"ramp", "median"});
    return result;
  }();
  return names;
}

std::vector<std::string> linear_rule_names() {
  std::vector<std::string> result;
  for (const merge::KnownRule& rule : merge::known_rules()) {
    if (rule.coefficients != nullptr) result.emplace_back(rule.name);
  }
  return result;
}

merge::Rule make_rule(const std::string& name, const std::vector<std::string>& subnetworks,
                      Random& random) {
  for (const merge::KnownRule& rule : merge::known_rules()) {
    if (rule.name == name && rule.takes == merge::Takes::kNothing) return merge::make_rule(rule);
  }
  if (name == "weighted") {
    std::vector<std::pair<std::string, double>> weights;
    for (const std::string& subnetwork : subnetworks) {
      weights.emplace_back(subnetwork, random.pick<double>({0.0, 0.25, 1.0, 1.0, 2.0, -0.5}));
    }
    return merge::weighted(std::move(weights));
  }
  if (name == "ramp") {
    return merge::function("ramp", [](const std::vector<merge::LaneGradient>& gradients) {
      at::Tensor result = at::zeros_like(gradients[0].gradient);
      for (size_t i = 0; i < gradients.size(); ++i) {
        result.add_(gradients[i].gradient, static_cast<double>(i + 1));
      }
      return result;
    });
  }
  return merge::function("median", [](const std::vector<merge::LaneGradient>& gradients) {
    std::vector<at::Tensor> all;
    for (const auto& each : gradients) all.push_back(each.gradient);
    return std::get<0>(at::median(at::stack(all), 0));
  });
}

at::Tensor merge_plainly(const merge::Rule& rule, const std::vector<PlainUse>& uses) {
  const auto some = std::find_if(uses.begin(), uses.end(),
                                 [](const PlainUse& use) { return use.gradient.defined(); });
  if (some == uses.end()) return {};
  const at::Tensor zero = at::zeros_like(some->gradient);
  const auto gradient = [&](const PlainUse& use) {
    return use.gradient.defined() ? use.gradient : zero;
  };
  std::vector<PlainUse> by_size = uses;
  std::sort(by_size.begin(), by_size.end(), [](const PlainUse& a, const PlainUse& b) {
    return std::pair(a.parameter_count, a.declared) < std::pair(b.parameter_count, b.declared);
  });
  const std::string& name = rule.name();
  at::Tensor total = zero.clone();
  if (name == "sum" || name == "mean") {
    for (const PlainUse& use : uses) total = total + gradient(use);
    return name == "sum" ? total : total / static_cast<double>(uses.size());
  }
  if (name == "owner") return gradient(by_size[0]).clone();
  if (name == "two_smallest_mean") {
    return by_size.size() == 1 ? gradient(by_size[0]).clone()
                               : (gradient(by_size[0]) + gradient(by_size[1])) / 2.0;
  }
  if (name == "weighted") {
    for (const PlainUse& use : uses) {
      for (const auto& [subnetwork, weight] : rule.weights()) {
        if (subnetwork == use.name) total = total + weight * gradient(use);
      }
    }
    return total;
  }
  if (name == "ramp") {
    for (size_t i = 0; i < uses.size(); ++i) {
      total = total + gradient(uses[i]) * static_cast<double>(i + 1);
    }
    return total;
  }
  if (name == "gradient_surgery") {
    const auto dot = [](const at::Tensor& a, const at::Tensor& b) {
      return (a * b).sum().item<double>();
    };
    for (const PlainUse& use : uses) {
      at::Tensor own = gradient(use).clone();
      std::vector<std::pair<double, at::Tensor>> against;
      for (const PlainUse& other : uses) {
        const double product = dot(own, gradient(other));
        if (&other == &use || product >= 0.0) continue;
        against.emplace_back(product / gradient(other).norm().item<double>(), gradient(other));
      }
      std::sort(against.begin(), against.end(),
                [](const auto& a, const auto& b) { return a.first < b.first; });
      for (const auto& [angle, other] : against) {
        const double product = dot(own, other);
        if (product < 0.0) own = own - other * (product / dot(other, other));
      }
      total = total + own;
    }
    return total;
  }
  if (name == "equal_norms") {
    double sizes = 0.0;
    int count = 0;
    for (const PlainUse& use : uses) {
      const double size = gradient(use).norm().item<double>();
      sizes += size;
      count += size > 0.0 ? 1 : 0;
    }
    for (const PlainUse& use : uses) {
      const double size = gradient(use).norm().item<double>();
      if (size > 0.0) total = total + gradient(use) * (sizes / count / size);
    }
    return total / static_cast<double>(uses.size());
  }
  TORCH_CHECK(name == "median", "the tests have no rule ", name);
  std::vector<at::Tensor> all;
  for (const PlainUse& use : uses) all.push_back(gradient(use));
  return std::get<0>(at::stack(all).sort(0)).select(0, (static_cast<int64_t>(all.size()) - 1) / 2);
}

Case random_case(uint64_t seed, const std::string& rule) {
  Random random(seed);
  torch::manual_seed(seed);
  const int64_t width = random.integer(1, 6);
  const bool has_first = random.chance(0.3), has_output = random.chance(0.7);
  const bool has_exit = has_output && random.chance(0.4);
  const auto least = has_first || has_output ? 0 : 1;
  const int64_t squares = random.integer(least, 5 - has_first - has_output - has_exit);
  const int64_t input = has_first ? random.integer(1, 6) : width;

  const auto dense = [&](int64_t in, int64_t out) {
    DenseOptions options(in, out);
    const auto activation =
        random.pick<std::string>({"linear", "relu", "relu", "gelu", "silu", "sigmoid", "tanh"});
    options.activation(activation_from_string(activation)).bias(random.chance(0.8));
    options.dropout(random.pick<double>({0.0, 0.0, 0.0, 0.3, 0.5, 1.0}));
    return options;
  };
  std::vector<std::pair<std::string, DenseOptions>> blocks;
  std::vector<std::string> middle;
  if (has_first) blocks.emplace_back("first", dense(input, width));
  for (int64_t i = 0; i < squares; ++i) {
    middle.push_back("hidden" + std::to_string(i));
    blocks.emplace_back(middle.back(), dense(width, width));
  }
  if (has_exit) blocks.emplace_back("early", dense(width, random.integer(1, 4)));
  if (has_output) blocks.emplace_back("output", dense(width, random.integer(1, 4)));

  // Sub-networks: the first block where there is one, some of the middle, one of the ends or none.
  std::vector<std::pair<std::string, SubnetworkOptions>> subnetworks;
  const auto add = [&](const std::string& name, bool all, bool early) {
    std::vector<std::string> kept;
    if (has_first) kept.emplace_back("first");
    for (const std::string& block : middle) {
      if (all || random.chance(0.5)) kept.push_back(block);
    }
    if (early) {
      kept.emplace_back("early");
    } else if (has_output && (all || random.chance(0.8))) {
      kept.emplace_back("output");
    }
    if (kept.empty()) kept.push_back(blocks.back().first);
    SubnetworkOptions options(kept);
    for (const std::string& block : kept) {
      if (random.chance(0.2)) options.dropout(block, random.pick<double>({0.0, 0.2, 0.7, 1.0}));
    }
    subnetworks.emplace_back(name, options);
  };
  add("base", true, false);
  const int64_t count = random.integer(has_exit ? 1 : 0, 4);
  for (int64_t i = 0; i < count; ++i) {
    add("sub" + std::to_string(i), false, has_exit && (i == 0 || random.chance(0.2)));
  }
  // Base need not be declared first.
  if (random.chance(0.5)) random.shuffle(subnetworks);

  std::vector<std::string> names;
  for (const auto& [name, options] : subnetworks) names.push_back(name);
  NetworkOptions options;
  const Shape sample = random.chance(0.2) ? Shape{2, input} : Shape{input};
  options.input(sample, at::kDouble);
  for (const auto& [name, block] : blocks) {
    std::optional<merge::Rule> own;
    if (random.chance(0.25)) own = make_rule(random.pick(rule_names()), names, random);
    options.block(name, block, own);
  }
  for (const auto& [name, subnetwork] : subnetworks) options.subnetwork(name, subnetwork);
  options.merge(make_rule(rule, names, random));

  Case result;
  result.net = Network(options);
  result.net->train(random.chance(0.6));
  for (at::Tensor& parameter : result.net->parameters()) {
    if (random.chance(0.12)) parameter.set_requires_grad(false);
  }
  std::vector<int64_t> batch{random.pick<int64_t>({0, 1, 2, 3, 5, 8})};
  batch.insert(batch.end(), sample.begin(), sample.end());
  result.x = at::randn(batch, at::kDouble);
  if (random.chance(0.7)) result.x.set_requires_grad(true);
  result.lanes = names;
  random.shuffle(result.lanes);
  result.lanes.resize(static_cast<size_t>(random.integer(1, static_cast<int64_t>(names.size()))));
  for (size_t i = 0; i < result.lanes.size(); ++i) {
    result.weights.push_back(random.chance(0.75)
                                 ? std::optional(random.pick<double>({1.0, 1.0, 0.5, -2.0, 0.0}))
                                 : std::nullopt);
  }
  return result;
}

NetworkOptions small_options(const merge::Rule& rule, double dropout, at::ScalarType dtype) {
  return NetworkOptions()
      .input({5}, dtype)
      .block("hidden1", DenseOptions(5, 5).activation(torch::kReLU).dropout(dropout))
      .block("hidden2", DenseOptions(5, 5).activation(torch::kReLU).dropout(dropout))
      .block("output", DenseOptions(5, 3))
      .subnetwork("sub1", SubnetworkOptions({"hidden2", "output"}))
      .subnetwork("sub2", SubnetworkOptions({"output"}))
      .merge(rule);
}

at::Tensor lane_loss(const at::Tensor& output, size_t lane) {
  const at::Tensor pattern =
      at::cos(at::arange(output.numel(), output.options().requires_grad(false)) *
              static_cast<double>(lane + 1))
          .view(output.sizes());
  return (output * pattern).sum() + 0.5 * output.square().sum();
}

/// The place of a block's first parameter in the table. (The blocks here have no private parts.)
size_t first_parameter(const Description& description, size_t block) {
  const auto& table = description.parameters();
  return static_cast<size_t>(std::find_if(table.begin(), table.end(),
                                          [&](const auto& each) { return each.block == block; }) -
                             table.begin());
}

at::Tensor plain_forward(const Core& core, at::TensorList parameters, const at::Tensor& x,
                         const std::string& subnetwork, std::optional<uint64_t> seed) {
  const Description& description = core.description();
  const auto held = description.subnetwork(subnetwork);
  const auto& described = *held;
  at::Tensor y = x;
  for (size_t i = 0; i < described.blocks.size(); ++i) {
    const auto& block = description.blocks()[described.blocks[i]];
    const DenseOptions& options = dynamic_cast<const Dense&>(*block.block).options();
    const at::Tensor* own = &parameters[first_parameter(description, described.blocks[i])];
    y = at::linear(y, own[0], options.bias() ? own[1] : at::Tensor());
    const std::string activation = to_string(options.activation());
    if (activation == "relu") y = at::relu(y);
    if (activation == "gelu") y = at::gelu(y);
    if (activation == "silu") y = at::silu(y);
    if (activation == "sigmoid") y = at::sigmoid(y);
    if (activation == "tanh") y = at::tanh(y);
    const double probability = described.fits[i].use.dropout.value_or(options.dropout());
    if (seed && probability > 0.0) {
      const at::Tensor mask =
          core.dropout_mask(*seed, subnetwork, block.name, probability, y.sizes());
      const double scale = probability < 1.0 ? 1.0 / (1.0 - probability) : 0.0;
      y = y * (mask.to(y.scalar_type()) * scale);
    }
  }
  return y;
}

std::vector<at::Tensor> merge_all_plainly(const Description& description,
                                          const std::vector<std::string>& lanes,
                                          const std::vector<std::vector<at::Tensor>>& gradients) {
  // The size of a sub-network, counted by hand.
  const auto count = [&](const std::string& name) {
    int64_t total = 0;
    const auto subnetwork = description.subnetwork(name);
    for (const size_t block : subnetwork->blocks) {
      for (const auto& parameter : description.blocks()[block].parameters) {
        int64_t numel = 1;
        for (const int64_t extent : parameter.shape) numel *= extent;
        total += numel;
      }
    }
    return total;
  };
  std::vector<at::Tensor> result;
  for (size_t place = 0; place < description.blocks().size(); ++place) {
    const auto& block = description.blocks()[place];
    for (size_t i = 0; i < block.parameters.size(); ++i) {
      std::vector<PlainUse> uses;
      for (size_t lane = 0; lane < lanes.size(); ++lane) {
        const auto held = description.subnetwork(lanes[lane]);
        const auto& kept = held->blocks;
        if (std::find(kept.begin(), kept.end(), place) == kept.end()) continue;
        uses.push_back({lanes[lane], count(lanes[lane]), description.index_of(lanes[lane]),
                        gradients[lane][first_parameter(description, place) + i]});
      }
      result.push_back(merge_plainly(block.rule, uses));
    }
  }
  return result;
}

Gradients reference_gradients(const Case& test, std::optional<uint64_t> seed) {
  const auto table = test.net->parameter_table();
  Gradients result;
  std::vector<std::vector<at::Tensor>> of_lanes;
  for (size_t lane = 0; lane < test.lanes.size(); ++lane) {
    std::vector<at::Tensor> leaves, wanted;
    for (const at::Tensor& parameter : table) {
      leaves.push_back(parameter.detach().clone().set_requires_grad(parameter.requires_grad()));
      if (parameter.requires_grad()) wanted.push_back(leaves.back());
    }
    const at::Tensor x = test.x.detach().clone().set_requires_grad(test.x.requires_grad());
    if (x.requires_grad()) wanted.push_back(x);
    of_lanes.emplace_back(table.size());
    if (!test.weights[lane]) continue;
    const at::Tensor output = plain_forward(test.net->core(), leaves, x, test.lanes[lane], seed);
    if (!output.requires_grad()) continue;
    const auto gradients = torch::autograd::grad(
        {lane_loss(output, lane) * *test.weights[lane]}, wanted, /*grad_outputs=*/{},
        /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
    size_t next = 0;
    for (size_t i = 0; i < table.size(); ++i) {
      if (table[i].requires_grad()) of_lanes.back()[i] = gradients[next++];
    }
    if (x.requires_grad()) {
      result.input = result.input.defined() ? result.input + gradients[next] : gradients[next];
    }
  }
  result.parameters = merge_all_plainly(test.net->description(), test.lanes, of_lanes);
  return result;
}

at::Tensor total_loss(const Case& test, const Outputs& outputs) {
  at::Tensor total;
  for (size_t lane = 0; lane < test.lanes.size(); ++lane) {
    if (!test.weights[lane]) continue;
    const at::Tensor term = lane_loss(outputs[test.lanes[lane]], lane) * *test.weights[lane];
    total = total.defined() ? total + term : term;
  }
  return total;
}

std::vector<at::Tensor> take_gradients(const Network& net) {
  std::vector<at::Tensor> result;
  for (at::Tensor& parameter : net->parameters()) {
    result.push_back(parameter.grad());
    parameter.mutable_grad().reset();
  }
  return result;
}

namespace {

/// Made at its first use and removed when the program ends.
struct TemporaryDirectory {
  TemporaryDirectory()
      : path(std::filesystem::temp_directory_path() / ("nsn_tests_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::filesystem::path path;
};

const std::filesystem::path& temporary_directory() {
  static const TemporaryDirectory directory;
  return directory.path;
}

}  // namespace

std::string temporary_path(const std::string& name) { return temporary_directory() / name; }

std::vector<std::string> temporary_files() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(temporary_directory())) {
    names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace nsn::test
