#include <c10/util/irange.h>

#include <algorithm>
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
                    ? net->description().subnetwork(name)->parameter_count + 7 * 2
                    : net->description().subnetwork(name)->parameter_count)
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
          .subnetwork("half", SubnetworkOptions({"up", "own"}).width("up", "out", 4)));
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

// -------------------------------------------------------------------------------------------------
// As torch::nn modules

/// Networks of all that stands in a row.
std::map<std::string, NetworkOptions> plain_networks() {
  std::map<std::string, NetworkOptions> result;
  result["dense"] =
      NetworkOptions()
          .input({8}, at::kDouble)
          .block("hidden", DenseOptions(8, 8).activation(torch::kReLU).dropout(0.5).scale(true))
          .block("gate", DenseOptions(8, 6).activation(kGLU).per_subnetwork({"bias"}))
          .block("norm", LayerNormOptions(6).bias(false))
          .block("output", DenseOptions(6, 3).bias(false).scale(true).per_subnetwork({"scale"}))
          .subnetwork("half", SubnetworkOptions({"hidden", "gate", "norm", "output"})
                                  .width("hidden", 0.5)
                                  .width("gate", 0.5)
                                  .dropout("hidden", 0.0))
          .subnetwork("tail", {{"gate", "output"}});
  result["words"] =
      NetworkOptions()
          .input({4}, at::kLong)
          .block("tokens", EmbeddingOptions(7, 8).dropout(0.1))
          .block("mix", SequenceOptions()
                            .block("norm", LayerNormOptions(8))
                            .block("up", DenseOptions(8, 8).activation(torch::kGELU))
                            .block("drop", DropoutOptions(0.5))
                            .block("down", DenseOptions(8, 8).activation(torch::kSiLU)))
          .block("even", LayerNormOptions(8).affine(false))
          .block("sigmoid", ActivationOptions(torch::kSigmoid))
          .block("flatten", FlattenOptions())
          .block("output", DenseOptions(32, 3).activation(torch::kTanh))
          .subnetwork("thin",
                      SubnetworkOptions({"tokens", "mix", "even", "sigmoid", "flatten", "output"})
                          .width("tokens", 4)
                          .width("mix", "up.out", 2)
                          .width("mix", "down.out", 4))
          .subnetwork("short", {{"tokens", "flatten", "output"}});
  const std::vector<std::string> picture{"conv", "norm", "relu",  "grouped", "groups",
                                         "pool", "up",   "large", "average", "output"};
  result["picture"] =
      NetworkOptions()
          .input({2, 8, 8}, at::kDouble)
          .block("conv", Conv2dOptions(2, 8, {3, 1}).stride({1, 2}).padding({1, 0}).scale(true))
          .block("norm", BatchNormOptions(8).per_subnetwork({"statistics", "affine"}))
          .block("relu", ActivationOptions(torch::kReLU))
          .block("grouped", Conv2dOptions(8, 8, 3).padding(2).dilation(2).groups(2))
          .block("groups", GroupNormOptions(2, 8))
          .block("pool", MaxPool2dOptions(2))
          .block("up", ConvTranspose2dOptions(8, 6, 3).stride(2).padding(1).output_padding(1))
          .block("large", UpsampleOptions(2).mode("bilinear"))
          .block("average", GlobalAvgPoolOptions())
          .block("output", DenseOptions(6, 3))
          .subnetwork("half", SubnetworkOptions(picture).width("conv", 4).width("up", 3))
          .subnetwork("thin", SubnetworkOptions(picture).width("grouped", 4));
  result["sound"] =
      NetworkOptions()
          .input({3, 16}, at::kDouble)
          .block("causal", Conv1dOptions(3, 6, 3).dilation(2).causal(true).activation(kGLU))
          .block("norm", BatchNormOptions(6).affine(false).track(false))
          .block("mean", AvgPool1dOptions(2).padding(1))
          .block("most", MaxPool1dOptions(3).stride(2))
          .block("average", GlobalAvgPoolOptions())
          .block("output", DenseOptions(6, 2))
          .subnetwork("half",
                      SubnetworkOptions({"causal", "norm", "mean", "most", "average", "output"})
                          .width("causal", 0.5))
          .subnetwork("raw", {{"causal", "average", "output"}});
  result["scenes"] = NetworkOptions()
                         .input({2, 2, 4, 4}, at::kDouble)
                         .block("norm", BatchNormOptions(2))
                         .block("average", GlobalAvgPoolOptions())
                         .block("output", DenseOptions(2, 2));
  result["small"] = NetworkOptions()
                        .input({2, 4, 4}, at::kDouble)
                        .block("nearest", UpsampleOptions(2))
                        .block("average", AvgPool2dOptions(4))
                        .block("depthwise", Conv2dOptions(2, 2, 2).groups(2).dropout(0.2));
  return result;
}

TEST(Extract, DoesWhatTheViewDoes) {
  auto all = networks();
  all.merge(plain_networks());
  for (const auto& [kind, options] : all) {
    Network net = filled(options);
    net->eval();
    const at::Tensor x = batch_for(net);
    for (const std::string& name : net->description().names()) {
      auto own = extract(net, name);
      const at::NoGradGuard no_grad;
      expect_close(own->forward(x), net->view(name)(x), 1e-12, kind + ", " + name);
      for (const at::Tensor& parameter : own->parameters()) EXPECT_TRUE(parameter.is_contiguous());
    }
  }
}

TEST(Extract, TrainsAsTheNetworkDoes) {
  Network net = filled(NetworkOptions()
                           .input({4}, at::kDouble)
                           .block("norm", BatchNormOptions(4).momentum(0.3))
                           .block("still", BatchNormOptions(4).track(false))
                           .block("output", DenseOptions(4, 2)));
  net->train();
  auto own = extract(net, "base");
  EXPECT_TRUE(own->is_training());
  const at::Tensor x = batch_for(net);
  expect_close(own->forward(x), net->forward(x), 1e-12);
  const auto buffers = own->named_buffers();
  for (const auto& buffer : net->named_buffers()) {
    if (buffer.key() == "still.num_batches_tracked") continue;
    expect_close(buffers[buffer.key()], buffer.value(), 1e-12, buffer.key());
  }
  net->eval();
  EXPECT_FALSE(extract(net, "base")->is_training());
}

TEST(Extract, NamesModulesAfterBlocks) {
  const Network net = filled(plain_networks().at("words"));
  std::vector<std::string> names;
  for (const auto& child : extract(net, "base")->named_children()) names.push_back(child.key());
  const std::vector<std::string> expected{
      "tokens_embedding", "tokens_dropout",      "mix_norm",
      "mix_up_linear",    "mix_up_activation",   "mix_drop",
      "mix_down_linear",  "mix_down_activation", "even",
      "sigmoid",          "output_linear",       "output_activation"};
  EXPECT_EQ(names, expected);
  const Network dense = filled(plain_networks().at("dense"));
  EXPECT_TRUE(extract(dense, "base")->named_children().contains("hidden_dropout"));
  EXPECT_FALSE(extract(dense, "half")->named_children().contains("hidden_dropout"));
}

TEST(Extract, OwnsItsStorage) {
  const Network net = filled(plain_networks().at("picture"));
  std::vector<at::Tensor> before;
  for (const at::Tensor& tensor : net->parameter_table()) before.push_back(tensor.detach().clone());
  auto own = extract(net, "base");
  const at::NoGradGuard no_grad;
  for (const at::Tensor& parameter : own->parameters()) parameter.zero_();
  for (const at::Tensor& buffer : own->buffers()) buffer.zero_();
  for (const size_t i : c10::irange(before.size())) {
    expect_same_bits(net->parameter_table()[i], before[i], net->description().parameters()[i].name);
  }
}

TEST(Extract, IsFrozenWhereTheNetworkIsAndDrawsNothing) {
  const Network net = filled(plain_networks().at("dense"));
  net->named_parameters()["gate.weight"].set_requires_grad(false);
  const auto state = at::detail::getDefaultCPUGenerator().get_state();
  auto own = extract(net, "half");
  EXPECT_TRUE(at::detail::getDefaultCPUGenerator().get_state().equal(state));
  EXPECT_EQ(own->parameters().size(), 8U);
  for (const auto& parameter : own->named_parameters()) {
    EXPECT_TRUE(parameter.value().is_leaf()) << parameter.key();
    EXPECT_EQ(parameter.value().requires_grad(), parameter.key() != "gate_linear.weight")
        << parameter.key();
  }
}

TEST(Extract, KeepsTiedParametersTied) {
  Network net = filled(networks().at("text"));
  net->eval();
  auto own = extract(net, "narrow");
  const auto copy = std::dynamic_pointer_cast<ExtractedImpl>(own->clone());
  const auto count = [](const torch::nn::Module& module) {
    const auto all = module.parameters();
    return std::count_if(all.begin(), all.end(),
                         [](const at::Tensor& each) { return each.size(0) == 11; });
  };
  EXPECT_EQ(count(*own), 2);  // the embedding's, and the bias of the output
  EXPECT_EQ(count(*copy), 2);
  const at::Tensor x = batch_for(net), before = own->forward(x).detach();
  {
    const at::NoGradGuard no_grad;
    own->named_parameters()["tokens.weight"].zero_();
  }
  const at::Tensor bias = own->named_parameters()["output.bias"];
  expect_close(own->forward(x), bias.expand({4, 5, 11}), 1e-12);
  expect_close(copy->forward(x), before, 1e-12);
}

TEST(Extract, GivesTheGradientsOfTheNetworkAlone) {
  Network net = filled(networks().at("text"));
  auto own = extract(net, "base");
  const at::Tensor x = batch_for(net);
  net->forward(x).square().mean().backward();
  own->forward(x).square().mean().backward();
  const auto gradients = own->named_parameters();
  for (const auto& parameter : net->named_parameters()) {
    // "first.ffn.up.weight" is "first_ffn_up_linear.weight".
    std::string name = parameter.key();
    const size_t leaf = name.rfind('.');
    std::replace(name.begin(), name.begin() + static_cast<std::ptrdiff_t>(leaf), '.', '_');
    if (!gradients.contains(name)) name.insert(leaf, "_linear");
    const at::Tensor own_gradient = gradients[name].grad();
    // Of 9 positions 5 are there.
    const at::Tensor expected = parameter.value().grad().narrow(0, 0, own_gradient.size(0));
    expect_close(own_gradient, expected, 1e-12, name);
  }
}

TEST(Extract, RefusesWhatTorchHasNot) {
  const auto refuses = [](const NetworkOptions& options, const std::vector<std::string>& parts) {
    const Network net = filled(options);
    expect_throws_with([&] { extract(net, "base"); }, parts);
  };
  const auto floats = NetworkOptions().input({8}, at::kDouble);
  refuses(NetworkOptions(floats).block("first", std::make_shared<const Leading>()),
          {"nsn::extract: block 'first' (Leading) is not one of nsn's own", "Use net->view"});
  torch::nn::Linear linear(8, 8);
  linear->to(at::kDouble);
  refuses(NetworkOptions(floats).block("first", WrappedOptions("Linear", linear)),
          {"nsn::extract: block 'first' (Linear) is not one of nsn's own"});
  refuses(NetworkOptions().input({2, 1, 1, 1, 1}, at::kDouble).block("norm", BatchNormOptions(2)),
          {"block 'norm' has samples of 5 dimensions", "Flatten some of them"});
}

TEST(Extract, RefusesTwoModulesOfOneName) {
  const Network net(NetworkOptions()
                        .input({2})
                        .block("a", DenseOptions(2, 2).activation(torch::kReLU))
                        .block("a_activation", DenseOptions(2, 2)));
  expect_throws_with([&] { extract(net, "base"); },
                     {"two modules would be named 'a_activation'", "made of block 'a_activation'",
                      "Rename the block"});
}

}  // namespace
}  // namespace nsn::test
