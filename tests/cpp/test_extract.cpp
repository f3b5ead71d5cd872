#include <c10/util/irange.h>

#include <map>

#include "support.h"

namespace nsn::test {
namespace {

/// Networks that between them have each kind of slice: widths, groups, halves of gates, heads,
/// channels behind positions, tied and private parameters, running statistics.
std::map<std::string, NetworkOptions> networks() {
  std::map<std::string, NetworkOptions> result;
  result["mlp"] = NetworkOptions()
                      .input({8}, at::kDouble)
                      .block("up", DenseOptions(8, 8).activation(torch::kReLU).dropout(0.5))
                      .block("gate", DenseOptions(8, 6).activation(kSwiGLU).scale(true))
                      .block("output", DenseOptions(6, 3).per_subnetwork({"bias"}))
                      .subnetwork("half", SubnetworkOptions({"up", "gate", "output"})
                                              .width("up", 0.5)
                                              .width("gate", 0.5)
                                              .dropout("up", 0.25))
                      .subnetwork("tail", {{"gate", "output"}});
  const std::vector<std::string> all{"conv", "stage",   "grouped", "group_norm",
                                     "pool", "flatten", "output"};
  result["cnn"] =
      NetworkOptions()
          .input({2, 6, 6}, at::kDouble)
          .block("conv", Conv2dOptions(2, 8, 3).padding(1).activation(torch::kGELU))
          .block("stage", ResidualOptions()
                              .block("conv", Conv2dOptions(8, 8, 3).padding(1))
                              .block("norm", BatchNormOptions(8).per_subnetwork({"statistics"}))
                              .block("act", ActivationOptions(torch::kReLU)))
          .block("grouped", Conv2dOptions(8, 8, 3).padding(1).groups(2))
          .block("group_norm", GroupNormOptions(2, 8))
          .block("pool", MaxPool2dOptions(2))
          .block("flatten", FlattenOptions())
          .block("output", DenseOptions(72, 5))
          .subnetwork("half", SubnetworkOptions(all).width("conv", 4))
          .subnetwork("thin", SubnetworkOptions(all).width("grouped", 4))
          .subnetwork("plain",
                      SubnetworkOptions({"conv", "pool", "flatten", "output"}).width("conv", 4));
  result["text"] =
      NetworkOptions()
          .input({5}, at::kLong)
          .block("tokens", EmbeddingOptions(11, 8))
          .block("positions", PositionEmbeddingOptions(9, 8))
          .block("first", TransformerOptions(8, 4, 12).causal(true).norm("rms"))
          .block("second", TransformerOptions(8, 4, 12).activation(kGeGLU))
          .block("output", TiedOutputOptions("tokens", 11, 8).bias(true))
          .subnetwork("narrow",
                      SubnetworkOptions({"tokens", "positions", "first", "second", "output"})
                          .width("first", "heads", 2)
                          .width("second", "ffn", 0.5))
          .subnetwork("thin",
                      SubnetworkOptions({"tokens", "positions", "output"}).width("tokens", 4));
  // The output reads more of the embedding than the input; then nothing of it but the output.
  result["ties"] =
      NetworkOptions()
          .input({3}, at::kLong)
          .block("tokens", EmbeddingOptions(7, 6))
          .block("others", EmbeddingOptions(7, 6))
          .block("mix", DenseOptions(6, 6))
          .block("output", TiedOutputOptions("tokens", 7, 6))
          .subnetwork("base", {{"tokens", "mix", "output"}})
          .subnetwork(
              "thin",
              SubnetworkOptions({"tokens", "mix", "output"}).width("tokens", 2).width("mix", 4))
          .subnetwork("apart", {{"others", "output"}});
  return result;
}

/// A network in float64 with random values all over, running statistics too.
Network filled(const NetworkOptions& options) {
  torch::manual_seed(5);
  Network net(options);
  net->to(at::kDouble);
  const at::NoGradGuard no_grad;
  for (const at::Tensor& parameter : net->parameters()) parameter.normal_(0.3, 0.5);
  for (const size_t i : c10::irange(net->parameter_table().size())) {
    const auto& described = net->description().parameters()[i];
    if (!described.is_buffer) continue;
    const at::Tensor& buffer = net->parameter_table()[i];
    if (described.dtype == at::kLong) {
      buffer.fill_(1);
    } else {
      buffer.uniform_(0.5, 1.5);
    }
  }
  return net;
}

at::Tensor batch_for(const Network& net) {
  Shape shape = net->description().input();
  shape.insert(shape.begin(), 4);
  return net->description().dtype() == at::kLong ? at::randint(0, 7, shape, at::kLong)
                                                 : at::randn(shape, at::kDouble);
}

/// A network of the extracted blocks and their own tensors alone.
Network assembled(const Network& net, const std::string& subnetwork) {
  NetworkOptions options;
  options.input(net->description().input(), net->description().dtype());
  std::map<std::string, at::Tensor> tensors;
  for (const ExtractedBlock& block : extract_blocks(net->description(), subnetwork)) {
    options.block(block.name, block.block);
    for (const ExtractedParameter& parameter : block.parameters) {
      tensors[block.name + "." + parameter.name] =
          extract_tensor(net->parameter_table()[parameter.place], parameter.slice);
    }
  }
  const Description description(options);
  std::vector<at::Tensor> table;
  for (const std::string& name : description.parameter_names()) table.push_back(tensors.at(name));
  return Network(description, table);
}

TEST(ExtractBlocks, ANetworkOfThemDoesWhatTheViewDoes) {
  for (const auto& [kind, options] : networks()) {
    const Network net = filled(options);
    const at::Tensor x = batch_for(net);
    for (const std::string& name : net->description().names()) {
      const Network own = assembled(net, name);
      expect_close(own->view("base")(x), net->view(name)(x), 1e-12, kind + ", " + name);
      EXPECT_EQ(own->description().parameter_count(),
                kind == "ties" && name == "thin"
                    ? net->description().subnetwork(name).parameter_count + 7 * 2
                    : net->description().subnetwork(name).parameter_count)
          << kind << ", " << name;
    }
  }
}

TEST(ExtractBlocks, NameTheSubnetworksOwnDropout) {
  const auto blocks = extract_blocks(Description(networks().at("mlp")), "half");
  ASSERT_EQ(blocks.size(), 3U);
  EXPECT_EQ(blocks[0].block->dropout(), 0.25);
  EXPECT_NE(
      blocks[0].document().find(R"("name":"up","type":"Dense","in_features":8,"out_features":4)"),
      std::string::npos)
      << blocks[0].document();
}

TEST(ExtractBlocks, SayWhereParametersAre) {
  const Description description(networks().at("mlp"));
  const auto blocks = extract_blocks(description, "half");
  const auto names = description.parameter_names();
  const auto& bias = blocks[2].parameters[1];
  EXPECT_EQ(bias.name, "bias");
  EXPECT_EQ(names[bias.place], "output.bias_half");
  const auto& gate = blocks[1].parameters[0];
  EXPECT_EQ(names[gate.place], "gate.weight");
  EXPECT_EQ(to_string(gate.slice), "(each of 2: 3 of 6, 4 of 8)");
}

TEST(ExtractBlocks, TiedParametersHaveOnePlace) {
  const Description description(networks().at("ties"));
  const auto base = extract_blocks(description, "base"), thin = extract_blocks(description, "thin");
  EXPECT_EQ(base[0].parameters[0].place, base[2].parameters[0].place);
  EXPECT_EQ(base[2].block->type(), "TiedOutput");
  EXPECT_EQ(thin[0].parameters[0].place, thin[2].parameters[0].place);
  EXPECT_EQ(thin[2].block->type(), "Dense");
}

TEST(ExtractTensor, IsACopyOfTheSlice) {
  const at::Tensor whole = at::arange(12, at::kDouble).view({4, 3}).set_requires_grad(true);
  const Layout slice{Axis({{2, 2}, {2, 1}}), Axis(3, 2)};
  const at::Tensor own = extract_tensor(whole, slice);
  expect_same_bits(own, at::tensor({0.0, 1.0, 6.0, 7.0}, at::kDouble).view({2, 2}));
  EXPECT_TRUE(own.is_contiguous());
  EXPECT_FALSE(own.requires_grad());
  EXPECT_FALSE(extract_tensor(whole, {4, 3}).is_alias_of(whole));
  expect_throws_with([&] { extract_tensor(at::zeros({4, 2}), slice); },
                     {"expected a tensor of shape (4, 3)", "got (4, 2)"});
}

/// Reads the leading features alone, and forgets to say how it does so by itself.
struct Leading : Block {
  std::string type() const override { return "Leading"; }
  std::vector<ParameterSpec> parameters() const override { return {{"factor", {8}}}; }
  Fit fit(const Signal& input, const BlockUse& use) const override {
    return {use, input, input, {{Axis(8, input.layout[0].kept())}}, 0, {}};
  }
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass& /*lane*/,
                     const BlockPass& /*pass*/) const override {
    return x * parameters[0];
  }
};

TEST(ExtractBlocks, RefuseABlockThatDoesNotNarrowItself) {
  const Description description(
      NetworkOptions()
          .input({8})
          .block("up", DenseOptions(8, 8))
          .block("own", std::make_shared<const Leading>())
          .subnetwork("half", SubnetworkOptions({"up", "own"}).width("up", 4)));
  EXPECT_EQ(extract_blocks(description, "base").size(), 2U);
  expect_throws_with([&] { extract_blocks(description, "half"); },
                     {"block 'own' (Leading) by itself wants a factor of shape (8)",
                      "sub-network 'half' keeps (4 of 8)", "Override Block::narrowed"});
}

TEST(Alone, HasItsOwnCopyOfAWrappedModule) {
  torch::manual_seed(2);
  Network net(NetworkOptions()
                  .input({4})
                  .block("first", WrappedOptions("Linear", torch::nn::Linear(4, 4)))
                  .block("output", DenseOptions(4, 2))
                  .subnetwork("tail", {{"output"}}));
  const at::Tensor before = net->parameter_table()[0].detach().clone();
  const Network other(net->description().alone("base"));
  torch::NoGradGuard no_grad;
  other->parameter_table()[0].zero_();
  expect_same_bits(net->parameter_table()[0], before);
}

}  // namespace
}  // namespace nsn::test
