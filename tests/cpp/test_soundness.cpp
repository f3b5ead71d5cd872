#include <cmath>
#include <filesystem>
#include <memory>

#include "support.h"

// Tables over what users may hand in: shared memory, layouts, narrow dtypes, modules around a
// network, blocks of one's own that say one thing and do another.

namespace nsn::test {

namespace {

struct Own : Block {
  std::string type() const override { return "Own"; }
};

/// Works in place on its input.
struct InPlace : Own {
  at::Tensor forward(const at::Tensor& x, at::TensorList, const LanePass&,
                     const BlockPass&) const override {
    return at::Tensor(x).mul_(2.0);
  }
};

NetworkOptions conv_lanes(BlockPtr between) {
  return NetworkOptions()
      .input({2, 6, 6}, at::kDouble)
      .block("conv", Conv2dOptions(2, 3, 3))
      .block("act", std::move(between))
      .block("flat", FlattenOptions())
      .block("out", DenseOptions(48, 4))
      .subnetwork("without", {{"conv", "flat", "out"}});
}

}  // namespace

TEST(SharedMemory, LanesDoNotWriteIntoEachOthers) {
  torch::manual_seed(1);
  Network net(conv_lanes(ActivationOptions(torch::kReLU)));
  net->eval();
  const auto x = torch::randn({3, 2, 6, 6}, at::kDouble);
  const auto expected = net->view("without")(x);
  {
    const at::NoGradGuard guard;
    expect_close(net->joint(x)["without"], expected, 1e-12, "no_grad");
  }
  {
    const c10::InferenceMode guard;
    expect_close(net->joint(x)["without"], expected, 1e-12, "inference_mode");
  }
  // A frozen trunk: what the other lane saved for its backward stays.
  net->train();
  for (auto& parameter : net->named_parameters()) {
    parameter.value().set_requires_grad(parameter.key().rfind("out", 0) == 0);
  }
  net->joint(x)["without"].square().sum().backward();
  const auto joint = net->parameters().back().grad().clone();
  const auto weight = net->named_parameters()["out.weight"].grad().clone();
  net->zero_grad();
  net->forward(x, "without").square().sum().backward();
  expect_close(weight, net->named_parameters()["out.weight"].grad(), 1e-12, "weight");
  expect_close(joint, net->parameters().back().grad(), 1e-12, "bias");
}

TEST(SharedMemory, BlocksInPlaceAreRefusedOrGetTheirOwn) {
  torch::manual_seed(1);
  Network net(conv_lanes(std::make_shared<const InPlace>()));
  const auto x = torch::randn({3, 2, 6, 6}, at::kDouble);
  expect_throws_with([&] { net->joint(x); }, {"block 'act' (Own)", "in place", "x.clone()"});
  net->eval();
  const auto expected = net->view("without")(x);
  const c10::InferenceMode guard;
  expect_close(net->joint(x)["without"], expected, 1e-12);
}

TEST(Layouts, ParametersAndInputsOfAnyLayoutGiveTheSame) {
  torch::manual_seed(2);
  const Description description(
      NetworkOptions()
          .input({8}, at::kDouble)
          .block("first", DenseOptions(8, 6).activation(torch::kReLU))
          .block("gelu", DenseOptions(6, 6).activation(torch::kGELU))
          .block("out", DenseOptions(6, 3))
          .subnetwork("narrow", SubnetworkOptions({"first", "gelu", "out"}).width("first", 3)));
  const Core core(description);
  const auto plain = core.initial_parameters();
  const auto x = torch::randn({5, 8}, at::kDouble);
  const auto run = [&](const std::vector<at::Tensor>& parameters, const at::Tensor& input) {
    return core.joint(parameters, input, {size_t{0}, size_t{1}}, /*training=*/true);
  };
  const auto expected = run(plain, x);
  using Change = std::function<at::Tensor(const at::Tensor&)>;
  const std::vector<std::pair<std::string, Change>> changes = {
      {"strided",
       [](const at::Tensor& t) {
         auto sizes = t.sizes().vec();
         sizes.push_back(2);
         return torch::zeros(sizes, t.options()).select(-1, 1).copy_(t);
       }},
      {"offset",
       [](const at::Tensor& t) {
         return torch::cat({torch::zeros({3}, t.options()), t.flatten()})
             .narrow(0, 3, t.numel())
             .view(t.sizes());
       }},
      {"negated", [](const at::Tensor& t) { return at::_neg_view(t.neg()); }},
      {"transposed",
       [](const at::Tensor& t) { return t.dim() == 2 ? t.t().contiguous().t() : t.clone(); }},
  };
  for (const auto& [name, change] : changes) {
    std::vector<at::Tensor> changed;
    for (const auto& parameter : plain) {
      changed.push_back(change(parameter.detach()).requires_grad_(name != "negated"));
    }
    const auto outputs = run(changed, change(x));
    for (const size_t lane : {0, 1}) expect_close(outputs[lane], expected[lane], 1e-12, name);
  }
  // Expanded: one element for all.
  auto expanded = plain;
  expanded[1] = torch::full({1}, 0.5, at::kDouble).expand({6});
  auto whole = plain;
  whole[1] = torch::full({6}, 0.5, at::kDouble);
  expect_close(run(expanded, x)[0], run(whole, x)[0], 1e-12, "expanded");
}

TEST(Coefficients, AreNotDividedByEachOther) {
  for (const auto& [small, large, dtype] :
       {std::tuple(1e-4, 1.0, at::kHalf), std::tuple(1e-20, 1e20, at::kFloat)}) {
    const auto weight = torch::ones({2, 2}, dtype).requires_grad_();
    const auto x = torch::ones({1, 2}, dtype);
    const functional::SharedLanes lanes{
        {{"a", 1}, {"b", 0}}, merge::weighted({{"a", small}, {"b", large}}), {}, {0, 0}};
    const auto y = functional::linear({x, x}, weight, {}, lanes);
    (y[0].sum() + y[1].sum()).backward();
    EXPECT_TRUE(weight.grad().isfinite().all().item<bool>());
    expect_close(weight.grad().to(at::kDouble), torch::full({2, 2}, small + large, at::kDouble),
                 1e-3 * large);
  }
}

TEST(Functions, CheckWhatTheyAreGiven) {
  const auto weight = torch::randn({3, 4}), bias = torch::randn({3}), x = torch::randn({2, 4});
  const functional::SharedLanes one{{{"a", 0}}, merge::sum()},
      two{{{"a", 0}, {"b", 1}}, merge::sum()};
  functional::ReluDropout relu;
  relu.relu = true;
  expect_close(functional::linear({x}, weight, bias, one, relu)[0],
               at::relu(at::linear(x, weight, bias)), 1e-6);
  const std::vector<std::function<void()>> calls = {
      [&] { functional::linear({x}, weight, bias, two); },
      [&] { functional::linear({x, x}, weight, bias, one); },
      [&] { functional::linear({x}, torch::zeros({0, 4}), {}, one); },
      [&] { functional::linear({x}, weight, torch::zeros({4}), one); },
      [&] { functional::linear({torch::zeros({2, 5})}, weight, bias, one); },
      [&] { functional::linear({at::Tensor()}, weight, bias, one); },
      [&] { functional::linear({x.to(at::kComplexFloat)}, weight.to(at::kComplexFloat), {}, one); },
      [&] { functional::convolution({x}, torch::zeros({3, 4, 1}), {}, one, {{1}, {0}, {1}}); },
      [&] { functional::relu_dropout({x, x}, {true, {{0.5, 1}}, {0, 1}}); },
      [&] { functional::relu_dropout({x}, {true, {{1.5, 1}}, {0}}); },
  };
  for (const auto& call : calls) expect_throws_with(call, {"nsn::"});
}

TEST(OwnBlock, FitAndOutputsAreChecked) {
  struct Parameter : Own {
    std::vector<ParameterSpec> parameters() const override { return {{"p", {4}}}; }
    at::Tensor forward(const at::Tensor& x, at::TensorList, const LanePass&,
                       const BlockPass&) const override {
      return x;
    }
  };
  struct NoSlices : Parameter {
    Fit fit(const Signal& input, const BlockUse& use) const override {
      return {use, input, input, {}, 0, {}};
    }
  };
  struct TooLarge : Parameter {
    Fit fit(const Signal& input, const BlockUse& use) const override {
      return {use, input, input, {{Axis(9)}}, 0, {}};
    }
  };
  struct TooFew : Own {
    Lanes joint(Lanes, const BlockPass&) const override { return {}; }
  };
  struct OtherShape : Own {
    at::Tensor forward(const at::Tensor& x, at::TensorList, const LanePass&,
                       const BlockPass&) const override {
      return x.narrow(1, 0, 2);
    }
  };
  struct NoJson : Own {
    std::string options_json() const override { return "no json"; }
  };
  const auto network = [](BlockPtr block) {
    return NetworkOptions().input({4}).block("own", std::move(block));
  };
  const auto x = torch::randn({2, 4});
  expect_throws_with([&] { Network net(network(std::make_shared<NoSlices>())); },
                     {"'own' (Own)", "0 slices"});
  expect_throws_with([&] { Network net(network(std::make_shared<TooLarge>())); },
                     {"'own' (Own)", "(9)", "(4)"});
  expect_throws_with([&] { Network net(network(std::make_shared<NoJson>())); },
                     {"'own' (Own)", "JSON"});
  expect_throws_with([&] { Network(network(std::make_shared<TooFew>()))->forward(x); },
                     {"'own' (Own)", "0 outputs for 1"});
  expect_throws_with([&] { Network(network(std::make_shared<OtherShape>()))->forward(x); },
                     {"'own' (Own)", "(B, 4)", "(2, 2)"});
}

TEST(Modules, CastsClonesAndContainersTakeANetwork) {
  const auto options = NetworkOptions()
                           .input({4})
                           .block("norm", BatchNormOptions(4))
                           .block("out", DenseOptions(4, 2));
  struct OuterImpl : torch::nn::Cloneable<OuterImpl> {
    explicit OuterImpl(NetworkOptions given) : options(std::move(given)) { OuterImpl::reset(); }
    void reset() override { net = register_module("net", Network(options)); }
    NetworkOptions options;
    Network net{nullptr};
  };
  const auto outer = std::make_shared<OuterImpl>(options);
  const auto x = torch::randn({6, 4});
  outer->net->forward(x);
  outer->net->named_children()["norm"]->eval();
  const auto copy = std::dynamic_pointer_cast<OuterImpl>(outer->clone());
  expect_same_bits(copy->net->view("base")(x), outer->net->view("base")(x));
  EXPECT_NE(copy->net->parameters()[0].data_ptr(), outer->net->parameters()[0].data_ptr());
  const auto clone = std::dynamic_pointer_cast<NetworkImpl>(outer->net->clone());
  for (const auto& each : {copy->net, Network(clone)}) {
    EXPECT_FALSE(each->named_children()["norm"]->is_training());
    EXPECT_TRUE(each->named_children()["out"]->is_training());
  }
  outer->to(at::kDouble);
  EXPECT_EQ(outer->net->named_buffers()["norm.num_batches_tracked"].scalar_type(), at::kLong);
  EXPECT_EQ(outer->net->named_buffers()["norm.running_mean"].scalar_type(), at::kDouble);
  outer->net->to(at::kHalf);
  EXPECT_EQ(outer->net->named_buffers()["norm.num_batches_tracked"].scalar_type(), at::kLong);

  torch::nn::Sequential sequence(Network(options), torch::nn::Linear(2, 3));
  EXPECT_EQ(sequence->forward(x).sizes(), at::IntArrayRef({6, 3}));
  expect_throws_with([&] { NetworkImpl(Description(options), {}); }, {"parameters"});
  auto parameters = outer->net->parameter_table().tensors();
  parameters[0] = torch::zeros({5});
  expect_throws_with([&] { NetworkImpl(Description(options), parameters); }, {"'", "(5)"});
}

TEST(Statistics, ANetworkThatWasNeverTrainedEvaluates) {
  const Parts own{"statistics"};
  Network net(NetworkOptions()
                  .input({4})
                  .block("norm", BatchNormOptions(4).per_subnetwork(own))
                  .block("out", DenseOptions(4, 2))
                  .subnetwork("other", {{"norm", "out"}}));
  net->eval();
  const auto x = torch::randn({6, 4});
  const auto before = net->forward(x, "other");
  expect_same_bits(net->view("other")(x), before);
  expect_close(Pack(net).view("other")(x), before, 1e-5);
  // Batches that do not fit leave the statistics as they are.
  expect_throws_with([&] { recalibrate(net, {x, torch::randn({6, 5})}); }, {"(6, 5)"});
  expect_same_bits(net->forward(x, "other"), before);
  recalibrate(net, {x}, {"base"});
  net->forward(x);
  expect_throws_with([&] { net->forward(x, "other"); }, {"'other'", "never made", "recalibrate"});
  expect_throws_with([&] { net->view("other")(x); }, {"never made"});
}

TEST(Loss, KnowsWhatItCannotMean) {
  Outputs outputs;
  outputs.insert("base", torch::randn({4, 1}));
  expect_throws_with([&] { joint_loss(outputs, torch::rand({4, 1})); },
                     {"'base'", "one class", "loss="});
  expect_throws_with([&] { joint_loss(outputs, torch::zeros({4}, at::kLong)); }, {"one class"});

  const auto y = torch::randn({2, 5, 7}, at::kDouble);
  const auto targets = torch::randint(7, {2, 5});
  targets[0][1] = -100;
  Outputs last;
  last.insert("base", y);
  expect_close(joint_loss(last, targets),
               torch::nn::functional::cross_entropy(y.flatten(0, 1), targets.flatten()), 1e-12);
  Outputs square;
  square.insert("base", torch::randn({2, 5, 5}));
  expect_throws_with([&] { joint_loss(square, torch::randint(5, {2, 5})); },
                     {"(2, 5, 5)", "loss="});

  Outputs far;
  const auto logits = torch::tensor({{0.0, 1.0, 2.0}}, at::kDouble);
  far.insert("base", logits + 1e15);
  expect_close(joint_loss(far, torch::tensor({0})),
               torch::nn::functional::cross_entropy(logits + 1e15, torch::tensor({0})), 1e-12);

  const auto half = torch::zeros({20000, 10}, at::kHalf);
  Outputs wide;
  for (const char* name : {"a", "b", "c"}) wide.insert(name, half);
  expect_close(joint_loss(wide, torch::zeros({20000}, at::kLong)).to(at::kDouble),
               torch::tensor(3 * std::log(10.0), at::kDouble), 1e-3);

  const auto leaf = torch::randn({2, 3}).requires_grad_();
  Outputs ignored;
  ignored.insert("base", leaf);
  const auto gradient =
      torch::autograd::grad({joint_loss(ignored, torch::full({2}, -100, at::kLong))}, {leaf}, {},
                            true, /*create_graph=*/true)[0];
  expect_close(gradient.detach(), torch::zeros({2, 3}), 0.0);
}

TEST(FusedSGD, TakesAllLayoutsAndRefusesBeforeItChanges) {
  torch::manual_seed(3);
  const auto start = torch::randn({4, 6}), step = torch::randn({4, 6});
  const auto strided = [](const at::Tensor& t) {
    return torch::zeros({4, 6, 2}).select(2, 0).copy_(t);
  };
  const auto turned = [](const at::Tensor& t) { return t.t().contiguous().t(); };
  using Change = std::function<at::Tensor(const at::Tensor&)>;
  const std::vector<Change> layouts = {[](const at::Tensor& t) { return t.clone(); }, strided,
                                       turned};
  const auto options = torch::optim::SGDOptions(0.1).momentum(0.9).nesterov(true);
  auto expected = start.clone().requires_grad_();
  torch::optim::SGD reference({expected}, options);
  for (int i = 0; i < 3; ++i) {
    expected.mutable_grad() = step.clone();
    reference.step();
  }
  for (const auto& of_parameter : layouts) {
    for (const auto& of_gradient : layouts) {
      auto parameter = of_parameter(start).requires_grad_();
      nsn::FusedSGD optimizer({parameter}, options);
      for (int i = 0; i < 3; ++i) {
        parameter.mutable_grad() = of_gradient(step);
        optimizer.step();
      }
      expect_close(parameter.detach(), expected.detach(), 1e-6);
    }
  }
  auto dense = start.clone().requires_grad_(), sparse = start.clone().requires_grad_();
  nsn::FusedSGD optimizer({dense, sparse}, options);
  dense.mutable_grad() = step.clone();
  sparse.mutable_grad() = step.to_sparse();
  expect_throws_with([&] { optimizer.step(); }, {"dense", "torch::optim::SGD"});
  expect_same_bits(dense.detach(), start);
  EXPECT_TRUE(optimizer.state().empty());
  sparse.mutable_grad() = step.clone();
  optimizer.step();
  expect_close(sparse.detach(), dense.detach(), 0);
}

TEST(Descriptions, KeepWhatWasSetInside) {
  const Description description(
      NetworkOptions()
          .input({4})
          .block("stage", SequenceOptions()
                              .block("a", DenseOptions(4, 4).dropout(0.5), /*takes_dropout=*/false)
                              .block("b", DenseOptions(4, 4).dropout(0.5)))
          .subnetwork("calm", SubnetworkOptions({"stage"}).dropout("stage", 0.0)));
  const auto again = Description::from_json(description.to_json());
  EXPECT_EQ(again, description);
  for (const Description& each : {description, again, description.alone("calm")}) {
    EXPECT_FALSE(each.blocks()[0].block->inner()[0].takes_dropout);
    EXPECT_TRUE(each.blocks()[0].block->inner()[1].takes_dropout);
  }
  expect_throws_with(
      [&] {
        Description(NetworkOptions()
                        .input({3}, at::kLong)
                        .block("embedding", EmbeddingOptions(5, 4))
                        .block("out", TiedOutputOptions("embedding", 5, 4), merge::mean()));
      },
      {"'out'", "'embedding.weight'", "Give the rule to that block"});
  expect_throws_with(
      [&] {
        Description(NetworkOptions().input({4}).block(
            "a", SequenceOptions().block("b", SequenceOptions().block("c d", DenseOptions(4, 4)))));
      },
      {"'c d'"});
}

TEST(Saved, NothingOutlivesTheBackward) {
  const auto masks = [](const BlockPtr& block) {
    Network net(NetworkOptions().input({64}).block("own", block));
    const auto x = torch::randn({256, 64}).requires_grad_();
    at::Tensor loss = net->forward(x).sum();
    const auto node = loss.grad_fn()->next_edge(0).function;
    loss.backward();
    const auto again = [&] { loss.backward(); };
    EXPECT_THROW(again(), c10::Error);
  };
  masks(DenseOptions(64, 64).activation(torch::kGELU));
  masks(DenseOptions(64, 64).activation(torch::kReLU).dropout(0.5));
  masks(DropoutOptions(0.5));
}

TEST(Modes, OfSingleBlocksAreRefused) {
  Network net(NetworkOptions()
                  .input({4})
                  .block("a", DenseOptions(4, 4))
                  .block("norm", BatchNormOptions(4))
                  .block("stage", SequenceOptions().block("drop", DropoutOptions(0.5)))
                  .block("plain", DenseOptions(4, 4))
                  .block("own", DenseOptions(4, 2))
                  .subnetwork("s", SubnetworkOptions({"a", "own"}).dropout("a", 0.5)));
  EXPECT_EQ(net->description().blocks_with_modes(),
            (std::vector<std::string>{"a", "norm", "stage"}));
  const auto x = at::randn({3, 4});
  net->joint(x);
  for (const char* name : {"a", "norm", "stage"}) {
    net->train();
    net->named_children()[name]->eval();
    expect_throws_with([&] { net->joint(x); },
                       {std::string("block '") + name + "' is in eval() mode", "net->train()"});
    expect_throws_with([&] { net->forward(x); }, {name});
    expect_throws_with(
        [&] { backward_by_lane(net, x, [](const auto&, const at::Tensor& y) { return y.sum(); }); },
        {name});
    net->eval();
    net->named_children()[name]->train();
    expect_throws_with([&] { net->joint(x); }, {"train() mode", "track(false)"});
  }
  net->eval();
  net->named_children()["plain"]->train();  // computes the same in both
  net->joint(x);
}

TEST(Dtype, OfTheParametersIsTheDescriptions) {
  for (const bool reads_indices : {false, true}) {
    NetworkOptions options;
    if (reads_indices) {
      options.input({3}, at::kLong).block("in", EmbeddingOptions(5, 4));
    } else {
      options.input({3, 4}).block("in", DenseOptions(4, 4));
    }
    options.block("norm", BatchNormOptions(3)).block("out", DenseOptions(4, 2));
    Network net(options);
    const auto bytes = describe(net->description())[0].bytes;
    const View before = net->view("base");
    net->to(at::kDouble);
    const Description& now = net->description();
    EXPECT_EQ(now.parameter_dtype(), at::kDouble);
    EXPECT_EQ(now.dtype(), reads_indices ? at::kLong : at::kDouble);
    EXPECT_EQ(describe(now)[0].bytes, 2 * bytes);
    EXPECT_EQ(Description::from_json(now.to_json()), now);
    EXPECT_EQ(now.alone("base").parameter_dtype(), at::kDouble);
    EXPECT_TRUE(before.stale());
    const std::string path = temporary_path("dtype.safetensors");
    save(net, path);
    const Network again = load(path);
    EXPECT_EQ(again->description(), now);
    const auto x = reads_indices ? at::zeros({2, 3}, at::kLong) : at::randn({2, 3, 4}, at::kDouble);
    net->joint(x);
    save(net, path);
    EXPECT_TRUE(load(path)->view("base")(x).equal(net->view("base")(x)));
    const auto copy = std::dynamic_pointer_cast<NetworkImpl>(net->clone());
    EXPECT_EQ(copy->description(), now);
    net->to(at::kCPU);
    EXPECT_EQ(net->description().parameter_dtype(), at::kDouble);
    net->to(at::kHalf);
    EXPECT_EQ(net->description().parameter_dtype(), at::kHalf);
    // One loaded in another dtype than its description says, as files of old may have it.
    const Network given(
        std::make_shared<NetworkImpl>(Description(options), copy->parameter_table().tensors()));
    EXPECT_EQ(given->description().parameter_dtype(), at::kDouble);
    std::filesystem::remove(path);
  }
}

TEST(Archives, OfAPartAreRefusedAndMakeItWhole) {
  const auto options = NetworkOptions()
                           .input({4})
                           .block("a", DenseOptions(4, 4))
                           .block("b", DenseOptions(4, 2))
                           .subnetwork("small", {{"b"}});
  Network net(options);
  const std::string path = temporary_path("part.safetensors"), archive = path + ".pt";
  save(net, path);
  torch::save(net, archive);
  Network part = load_only(path, "small");
  expect_throws_with([&] { torch::save(part, path + ".no"); },
                     {"'base' was not loaded", "load_rest"});
  torch::load(part, archive);
  EXPECT_EQ(part->loaded(), net->description().names());
  EXPECT_TRUE(part->view("base")(at::ones({1, 4})).equal(net->view("base")(at::ones({1, 4}))));
  for (const std::string& each : {path, archive, path + ".no"}) std::filesystem::remove(each);
}

TEST(Plain, MemoryIsAskedForByNameAndType) {
  Network net(NetworkOptions().input({4}).block("a", DenseOptions(4, 4)));
  const Core core(net->description());
  const auto own = net->parameter_table();
  const auto weight = own[0].detach();
  const std::vector<at::Tensor> others{weight.to_sparse(), weight.to(at::kMeta),
                                       weight.to_sparse_csr()};
  const Pack pack(net);
  for (const at::Tensor& other : others) {
    const std::vector<at::Tensor> table{other, own[1].detach()};
    const std::vector<std::string> parts{"'a.weight'", other.toString(), "no plain memory"};
    expect_throws_with<c10::TypeError>(
        [&] { Pack(ParameterTable(std::make_shared<const Core>(net->description()), table)); },
        parts);
    expect_throws_with<c10::TypeError>([&] { pack.stale(table); }, parts);
    expect_throws_with<c10::TypeError>(
        [&] { write_checkpoint(net->description(), table, temporary_path("plain")); }, parts);
  }
}

TEST(Saving, RefusesWhatADescriptionLacks) {
  struct Own : NetworkImpl {
    explicit Own(Description description) : NetworkImpl(std::move(description)) {
      register_module("head", torch::nn::Linear(2, 2));
    }
  };
  const std::shared_ptr<NetworkImpl> own = std::make_shared<Own>(
      Description(NetworkOptions().input({4}).block("a", DenseOptions(4, 2))));
  const Network net(own);
  const std::string path = temporary_path("subclass.safetensors");
  expect_throws_with([&] { save(net, path); }, {"'head.weight'", "torch::save"});
  EXPECT_FALSE(std::filesystem::exists(path));
}

/// The block of block.h that follows the width of its input.
struct Follower : Block {
  explicit Follower(int64_t features) : features(features) {}
  int64_t features;
  std::string type() const override { return "Follower"; }
  std::vector<ParameterSpec> parameters() const override { return {{"factor", {features}}}; }
  Fit fit(const Signal& input, const BlockUse& use) const override {
    const Axis& last = input.layout.back();
    if (last.full() != features) misfit("(*, features)", input);
    return {use, input, input, {Layout{last}}, 0, {}};
  }
  BlockPtr narrowed(const Fit& fit) const override {
    return std::make_shared<Follower>(fit.input.layout.back().kept());
  }
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const LanePass&,
                     const BlockPass&) const override {
    return x * parameters[0];
  }
};

TEST(OwnBlocks, MayNarrow) {
  Network net(NetworkOptions()
                  .input({4}, at::kDouble)
                  .block("in", DenseOptions(4, 8))
                  .block("own", std::make_shared<const Follower>(8))
                  .block("out", DenseOptions(8, 3))
                  .subnetwork("half", SubnetworkOptions().width(0.5)));
  net->parameter_table()[2].detach().copy_(at::rand({8}));
  const auto x = at::randn({5, 4}, at::kDouble);
  const auto outputs = net->joint(x);
  (outputs["base"].sum() + outputs["half"].pow(2).sum()).backward();
  const at::Tensor merged = net->parameter_table()[2].grad().clone();
  at::Tensor expected = at::zeros({8}, at::kDouble);
  for (const bool half : {false, true}) {
    net->zero_grad();
    const at::Tensor output = net->forward(x, half ? "half" : "base");
    (half ? output.pow(2) : output).sum().backward();
    expected += net->parameter_table()[2].grad();
    EXPECT_TRUE(output.equal(net->view(half ? "half" : "base")(x)));
  }
  expect_close(merged, expected, 1e-12);
  EXPECT_EQ(net->description().alone("half").parameter_count(),
            net->description().subnetwork("half")->parameter_count);
}

TEST(OwnRules, PadWhatIsNarrow) {
  // Their largest, where a lane reaches.
  const auto largest = merge::function("largest", [](const auto& lanes) {
    at::Tensor result = lanes[0].padded();
    for (const auto& lane : lanes) result = at::maximum(result, lane.padded());
    return result;
  });
  const merge::LaneGradient lane{"a", {1, 2}, at::ones({1, 2}), {2, 3}};
  EXPECT_TRUE(lane.padded().equal(at::tensor({1.F, 1.F, 0.F, 0.F, 0.F, 0.F}).view({2, 3})));
  for (const double width : {0.5, 1.0}) {
    Network net(NetworkOptions()
                    .input({4})
                    .block("a", DenseOptions(4, 6))
                    .block("b", DenseOptions(6, 3))
                    .subnetwork("s", SubnetworkOptions().width(width))
                    .merge(largest));
    const auto x = at::rand({2, 4});
    const auto outputs = net->joint(x);
    (outputs["base"].sum() + 2 * outputs["s"].sum()).backward();
    for (const at::Tensor& parameter : net->parameters()) {
      EXPECT_EQ(parameter.grad().sizes(), parameter.sizes());
    }
  }
}

}  // namespace nsn::test
