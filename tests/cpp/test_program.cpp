#include <sstream>

#include "support.h"

namespace nsn::test {
namespace {

/// y = factor * x + shift, narrowed with its input; says what it is in primitives.
struct Affine : Block {
  explicit Affine(bool is_wrong = false) : is_wrong(is_wrong) {}
  bool is_wrong;
  std::string type() const override { return "Affine"; }
  std::vector<ParameterSpec> parameters() const override {
    return {{"factor", {8}}, {"shift", {8}, false, /*per_subnetwork=*/true}};
  }
  Fit fit(const Signal& input, const BlockUse& use) const override {
    const Layout slice{input.layout.back()};
    return {use, input, input, {slice, slice}, 0, {}};
  }
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& /*lane*/,
                     const BlockPass& /*pass*/) const override {
    return x * parameters[0] + parameters[1];
  }
  size_t lower(Lowering& to, size_t x) const override {
    if (is_wrong) return to.step("", primitives::Reshape{{2, -1}}, {x});
    return to.step("", primitives::ScaleAndShift{-1}, {x},
                   {to.operand(0, "scale"), to.operand(1, "bias")});
  }
};

/// The same without `lower`.
struct Opaque : Affine {
  std::string type() const override { return "Opaque"; }
  size_t lower(Lowering& to, size_t x) const override { return Block::lower(to, x); }
};

template <typename Own>
Network network() {
  torch::manual_seed(3);
  Network net(
      NetworkOptions()
          .input({6}, at::kDouble)
          .block("up", DenseOptions(6, 8).activation(torch::kReLU))
          .block("stage", SequenceOptions().block("own", std::make_shared<const Own>()))
          .block("output", DenseOptions(8, 3))
          .subnetwork("half", SubnetworkOptions({"up", "stage", "output"}).width("up", "out", 4)));
  const at::NoGradGuard no_grad;
  for (const at::Tensor& parameter : net->parameters()) parameter.normal_();
  return net;
}

template <typename Own>
class BlocksOfOnesOwn : public testing::Test {};
using OwnTypes = testing::Types<Affine, Opaque>;
TYPED_TEST_SUITE(BlocksOfOnesOwn, OwnTypes);

TYPED_TEST(BlocksOfOnesOwn, ArePackedAsTheViewComputesThem) {
  const Network net = network<TypeParam>();
  const at::Tensor x = at::randn({5, 6}, at::kDouble);
  const Pack pack(net);
  for (const std::string name : {"base", "half"}) {
    expect_close(pack.view(name)(x), net->view(name)(x), 1e-14, name);
  }
}

TEST(Program, ABlockThatLowersItselfIsExtracted) {
  const Network net = network<Affine>();
  const at::Tensor x = at::randn({5, 6}, at::kDouble);
  for (const std::string name : {"base", "half"}) {
    expect_close(extract(net, name)->forward(x), net->view(name)(x), 1e-14, name);
  }
  expect_throws_with([] { extract(network<Opaque>(), "half"); },
                     {"block 'stage.own' (Opaque) is not one of nsn's own", "extract_blocks"});
}

TEST(Program, IsPrinted) {
  std::ostringstream text;
  text << lower(network<Affine>()->description(), "half");
  EXPECT_EQ(text.str(),
            "%0: (6)\n"
            "%1 = product(%0, up.weight (4 of 8, 6), up.bias (4 of 8)) -> (4)\n"
            "%2 = activation(%1, function=relu) -> (4)\n"
            "%3 = scale_and_shift(%2, stage.own.factor (4 of 8), stage.own.shift_half (4), "
            "dimension=-1) -> (4)\n"
            "%4 = product(%3, output.weight (3, 4 of 8), output.bias (3)) -> (3)\n");
}

TEST(Program, RefusesStepsThatDoNotFit) {
  expect_throws_with(
      [] {
        lower(Description(NetworkOptions().input({8}).block(
                  "own", std::make_shared<const Affine>(/*is_wrong=*/true))),
              "base");
      },
      {"nsn::Program: the step 'reshape' of block 'own' reads (8), which does not fit"});
  Program program({4}, at::kFloat);
  const Operand weight{"weight", "a.weight", 0, whole({3, 4})};
  EXPECT_EQ(program.add({"a", "", primitives::Product{}, {0}, {weight}}), 1U);
  EXPECT_EQ(program.shape_of(1), (Shape{3}));
  const auto refuses = [&](Step step, const std::string& found) {
    expect_throws_with([&] { program.add(std::move(step)); }, {found});
  };
  refuses({"b", "", primitives::Product{}, {2}}, "reads value 2, but there are 2 before it");
  refuses({"b", "", primitives::Product{}, {1}}, "'product' of block 'b' lacks its weight");
  refuses({"b", "", primitives::Product{}, {1}, {weight}}, "'b' reads (3)");
  refuses({"b", "", primitives::Add{}, {0, 1}}, "reads (4) and (3)");
  refuses({"b", "", primitives::Attend{2, false}, {0}}, "reads (4)");
  refuses({"b", "", primitives::Gate{kGLU, -1}, {1}}, "reads (3)");
  refuses({"b", "", primitives::Gate{torch::kReLU, -1}, {0}}, "has the function relu");
  refuses({"b", "", primitives::Activate{kGLU}, {0}}, "has the gated function glu");
  refuses({"b", "", primitives::MaxPool{{2}, {1}, {0}}, {0}}, "reads (4)");
  expect_throws_with([&] { program.returns(2); }, {"cannot return value 2", "make 1"});
}

}  // namespace
}  // namespace nsn::test
