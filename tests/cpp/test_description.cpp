#include <limits>

#include "support.h"

// The description: what it accepts, what it says about the rest, and its JSON.

namespace nsn::test {
namespace {

NetworkOptions two_blocks() {
  return NetworkOptions()
      .input({4})
      .block("hidden", DenseOptions(4, 4).activation(torch::kReLU).dropout(0.5))
      .block("output", DenseOptions(4, 2));
}

void expect_refused(const NetworkOptions& options, const std::vector<std::string>& parts,
                    const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  expect_throws_with([&] { Description{options}; }, parts, file, line);
}

TEST(Description, KnowsItsParts) {
  const Description description(
      two_blocks()
          .subnetwork("tiny", SubnetworkOptions({"output"}))
          .subnetwork("calm", SubnetworkOptions({"hidden", "output"}).dropout("hidden", 0.1)));
  EXPECT_EQ(description.names(), (std::vector<std::string>{"base", "tiny", "calm"}));
  EXPECT_EQ(description.input(), (Shape{4}));
  EXPECT_EQ(description.dtype(), at::kFloat);
  EXPECT_EQ(description.parameters().size(), 4U);
  EXPECT_EQ(description.parameter_count(), 4 * 4 + 4 + 4 * 2 + 2);
  EXPECT_EQ(description.subnetwork("tiny")->parameter_count, 10);
  EXPECT_TRUE(description.lane(1).is_smaller_than(description.lane(0)));
  // Equal sizes: the order of declaration, base first.
  EXPECT_TRUE(description.lane(0).is_smaller_than(description.lane(2)));
  EXPECT_FALSE(description.lane(2).is_smaller_than(description.lane(0)));
  EXPECT_EQ(description.index_of("calm"), 2U);
  EXPECT_EQ(description.subnetwork("calm")->fits[0].use.dropout, 0.1);
  EXPECT_EQ(description.subnetwork("base")->fits[0].use.dropout, std::nullopt);
  EXPECT_EQ(description.subnetwork("base")->output, (Shape{2}));
  EXPECT_EQ(description.merge().name(), "sum");
  expect_throws_with([&] { description.index_of("Base"); }, {"'Base'", "'base', 'tiny', 'calm'"});
}

TEST(Description, CountsThePapersParameters) {
  const Description paper(NetworkOptions()
                              .input({784})
                              .block("hidden1", DenseOptions(784, 784))
                              .block("hidden2", DenseOptions(784, 784))
                              .block("output", DenseOptions(784, 10))
                              .subnetwork("sub1", SubnetworkOptions({"hidden2", "output"}))
                              .subnetwork("sub2", SubnetworkOptions({"output"})));
  EXPECT_EQ(paper.parameter_count(), 1'238'730);
  EXPECT_EQ(paper.subnetwork("base")->parameter_count, 1'238'730);
  EXPECT_EQ(paper.subnetwork("sub1")->parameter_count, 623'290);
  EXPECT_EQ(paper.subnetwork("sub2")->parameter_count, 7'850);
}

TEST(Description, BaseMayNameItsBlocks) {
  const Description description(
      two_blocks()
          .block("other", DenseOptions(2, 2))
          .subnetwork("exit", SubnetworkOptions({"hidden", "output", "other"}))
          .subnetwork("base", SubnetworkOptions({"hidden", "output"})));
  EXPECT_EQ(description.names(), (std::vector<std::string>{"base", "exit"}));
  EXPECT_EQ(description.subnetwork("base")->blocks, (std::vector<size_t>{0, 1}));
}

TEST(DescriptionErrors, NameTheInput) {
  expect_refused(NetworkOptions().block("a", DenseOptions(4, 4)), {"input has no shape"});
  expect_refused(two_blocks().input({4, 0}), {"input", "at least 1", "0"});
  expect_refused(two_blocks().input({-3}), {"input", "-3"});
  expect_refused(two_blocks().input({int64_t{1} << 31, int64_t{1} << 31}), {"input", "2^60"});
  expect_refused(two_blocks().input({4}, at::kBool), {"dtype", "Bool", "float32"});
  expect_refused(two_blocks().input({4}, at::kComplexFloat), {"dtype", "ComplexFloat"});
}

TEST(DescriptionErrors, NameTheBlock) {
  expect_refused(NetworkOptions().input({4}), {"no blocks"});
  expect_refused(two_blocks().block("hidden", DenseOptions(2, 2)), {"two blocks", "'hidden'"});
  expect_refused(two_blocks().block("", DenseOptions(2, 2)), {"block name ''"});
  expect_refused(two_blocks().block("a.b", DenseOptions(2, 2)), {"block name 'a.b'", "letters"});
  expect_refused(two_blocks().block("1a", DenseOptions(2, 2)), {"'1a'", "digit"});
  expect_refused(two_blocks().block("a", nullptr), {"'a' is null"});
  expect_refused(two_blocks().subnetwork("base", SubnetworkOptions({"output"})),
                 {"no sub-network keeps block 'hidden'"});
}

TEST(DescriptionErrors, NameTheSubnetwork) {
  const auto sub = [](std::vector<std::string> blocks, const std::string& name = "s") {
    return two_blocks().subnetwork(name, SubnetworkOptions(std::move(blocks)));
  };
  expect_refused(sub({}), {"'s' keeps no block"});
  expect_refused(sub({"hidden", "ouput"}), {"'s'", "'ouput'", "'hidden', 'output'"});
  expect_refused(sub({"output", "hidden"}), {"'s'", "'hidden' after 'output'", "order"});
  expect_refused(sub({"output", "output"}), {"'s'", "'output' after 'output'", "once"});
  expect_refused(sub({"output"}, "s").subnetwork("s", SubnetworkOptions({"output"})),
                 {"two sub-networks", "'s'"});
  expect_refused(sub({"output"}, "base").subnetwork("base", SubnetworkOptions({"output"})),
                 {"two sub-networks", "'base'"});
  expect_refused(sub({"output"}, "a b"), {"sub-network name 'a b'"});
  expect_refused(sub({"output"}, ""), {"sub-network name ''"});
}

TEST(DescriptionErrors, NameBothShapes) {
  expect_refused(
      NetworkOptions().input({4}).block("a", DenseOptions(4, 3)).block("b", DenseOptions(4, 2)),
      {"sub-network 'base'", "block 'b'", "(Dense)", "(*, 4)", "(3)", "block 'a'"});
  expect_refused(NetworkOptions().input({5}).block("a", DenseOptions(4, 3)),
                 {"block 'a'", "(*, 4)", "(5)", "the network's input"});
  // Base fits, a sub-network's way does not.
  expect_refused(NetworkOptions()
                     .input({4})
                     .block("a", DenseOptions(4, 3))
                     .block("b", DenseOptions(3, 2))
                     .subnetwork("s", SubnetworkOptions({"b"})),
                 {"sub-network 's'", "block 'b'", "(*, 3)", "(4)", "the network's input"});
}

TEST(DescriptionErrors, NameTheDropout) {
  const auto dropout = [](const std::string& block, double probability) {
    return two_blocks().subnetwork("s", SubnetworkOptions({"output"}).dropout(block, probability));
  };
  expect_refused(dropout("hidden", 0.5), {"'s'", "'hidden'", "does not keep", "'output'"});
  expect_refused(dropout("nothing", 0.5), {"'s'", "'nothing'", "does not keep"});
  expect_refused(dropout("output", 1.5), {"'s'", "'output'", "from 0 to 1", "1.5"});
  expect_refused(dropout("output", -0.1), {"'s'", "from 0 to 1"});
  expect_refused(dropout("output", std::numeric_limits<double>::quiet_NaN()), {"from 0 to 1"});
  expect_refused(
      two_blocks().subnetwork(
          "s", SubnetworkOptions({"output"}).dropout("output", 0.1).dropout("output", 0.2)),
      {"'s'", "'output' twice"});
}

TEST(DescriptionErrors, NameTheOptionsOfDense) {
  const auto refused = [](const DenseOptions& options, const std::vector<std::string>& parts) {
    expect_throws_with([&] { Dense{options}; }, parts);
  };
  refused(DenseOptions(0, 4), {"in_features", "at least 1", "0"});
  refused(DenseOptions(4, -1), {"out_features", "at least 1", "-1"});
  refused(DenseOptions(4, 4).dropout(1.01), {"dropout", "1.01"});
  refused(DenseOptions(4, 4).dropout(std::numeric_limits<double>::quiet_NaN()), {"dropout"});
  refused(DenseOptions(4, 4).bias(false).bias_init(0.5), {"bias_init", "0.5", "bias is false"});
  refused(DenseOptions(4, 4).bias_init(std::numeric_limits<double>::infinity()),
          {"bias_init", "finite"});
  refused(DenseOptions(int64_t{1} << 31, int64_t{1} << 31), {"Dense", "2^60"});
  refused(DenseOptions(std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::max()),
          {"2^60"});
}

TEST(DescriptionErrors, NameTheRule) {
  expect_refused(two_blocks().merge(merge::weighted({{"base", 1.0}, {"sub9", 1.0}})),
                 {"'weighted'", "'hidden'", "'sub9'", "'base'"});
  expect_refused(two_blocks()
                     .subnetwork("s", SubnetworkOptions({"output"}))
                     .merge(merge::weighted({{"base", 1.0}})),
                 {"no coefficient", "'s'"});
}

// -------------------------------------------------------------------------------------------------
// JSON

/// A valid document that the tests below spoil one part of.
const std::string kDocument = R"({
  "nsn": 1,
  "input": {"shape": [4], "dtype": "float64"},
  "blocks": [
    {"name": "hidden", "type": "Dense", "in_features": 4, "out_features": 4, "bias": false,
     "activation": "gelu", "dropout": 0.5, "weight_init": "xavier_uniform"},
    {"name": "output", "type": "Dense", "in_features": 4, "out_features": 2, "bias_init": 0.01,
     "merge": {"rule": "weighted", "weights": {"base": 0.5, "tiny": 2}}}
  ],
  "subnetworks": [
    {"name": "tiny", "blocks": ["output"], "dropout": {"output": 0.25}}
  ],
  "merge": {"rule": "two_smallest_mean"}
})";

std::string spoiled(const std::string& what, const std::string& with) {
  std::string text = kDocument;
  const size_t place = text.find(what);
  TORCH_CHECK(place != std::string::npos, "the document has no ", what);
  return text.replace(place, what.size(), with);
}

void expect_json_refused(const std::string& text, const std::vector<std::string>& parts,
                         const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  expect_throws_with([&] { Description::from_json(text); }, parts, file, line);
}

TEST(DescriptionJson, ReadsAllFields) {
  const Description description = Description::from_json(kDocument);
  EXPECT_EQ(description.dtype(), at::kDouble);
  EXPECT_EQ(description.merge().name(), "two_smallest_mean");
  EXPECT_EQ(description.names(), (std::vector<std::string>{"base", "tiny"}));
  EXPECT_EQ(description.subnetwork("tiny")->fits[0].use.dropout, 0.25);
  const auto& hidden = dynamic_cast<const Dense&>(*description.blocks()[0].block).options();
  EXPECT_FALSE(hidden.bias());
  EXPECT_EQ(to_string(hidden.activation()), "gelu");
  EXPECT_EQ(hidden.dropout(), 0.5);
  EXPECT_EQ(hidden.weight_init(), WeightInit::kXavierUniform);
  const auto& output = description.blocks()[1];
  EXPECT_TRUE(output.overrides_rule);
  EXPECT_FALSE(description.blocks()[0].overrides_rule);
  EXPECT_EQ(output.rule.weights()[1], (std::pair<std::string, double>{"tiny", 2.0}));
  EXPECT_EQ(dynamic_cast<const Dense&>(*output.block).options().bias_init(), 0.01);
}

TEST(DescriptionJson, HasTheDocumentedDefaults) {
  const Description description = Description::from_json(
      R"({"nsn": 1, "input": {"shape": [3]},
          "blocks": [{"name": "a", "type": "Dense", "in_features": 3, "out_features": 2}]})");
  EXPECT_EQ(description, Description(NetworkOptions().input({3}).block("a", DenseOptions(3, 2))));
}

TEST(DescriptionJson, RoundTrips) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    Case test = random_case(seed, random.pick(rule_names()));
    const Description& description = test.net->description();
    const Supplied supplied{.rules = {{"ramp", make_rule("ramp", {}, random)},
                                      {"median", make_rule("median", {}, random)}}};
    for (const int indent : {-1, 2}) {
      const std::string text = description.to_json(indent);
      EXPECT_EQ(text.find('\n') == std::string::npos, indent < 0);
      const Description again = Description::from_json(text, supplied);
      EXPECT_EQ(again.to_json(indent), text);
      EXPECT_EQ(again, description);
      EXPECT_EQ(again.parameter_names(), description.parameter_names());
      EXPECT_EQ(again.names(), description.names());
      for (const std::string& name : description.names()) {
        EXPECT_EQ(again.subnetwork(name)->uses, description.subnetwork(name)->uses);
        EXPECT_EQ(again.subnetwork(name)->parameter_count,
                  description.subnetwork(name)->parameter_count);
      }
      for (const auto& block : again.blocks()) EXPECT_FALSE(block.rule.is_missing());
    }
  }
}

TEST(DescriptionJson, TellsDescriptionsApart) {
  const Description one(two_blocks());
  EXPECT_FALSE(one == Description(two_blocks().merge(merge::mean())));
  EXPECT_FALSE(one == Description(two_blocks().subnetwork("s", SubnetworkOptions({"output"}))));
  EXPECT_FALSE(one == Description(two_blocks().input({4}, at::kDouble)));
}

TEST(DescriptionJson, KeepsEveryDtypeAndDoublesExactly) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16}) {
    const Description description(two_blocks().input({4}, dtype));
    EXPECT_EQ(Description::from_json(description.to_json()).dtype(), dtype);
    EXPECT_EQ(description.parameter_dtype(), dtype);
  }
  for (const auto dtype : {at::kLong, at::kInt, at::kShort, at::kChar, at::kByte}) {
    expect_throws_with([&] { Description(two_blocks().input({4}, dtype)); },
                       {"(Dense) expects floating", c10::toString(dtype)});
  }
  const double odd = 0.1 + 0.2;
  const Description description(two_blocks().merge(merge::weighted({{"base", odd}})));
  EXPECT_EQ(Description::from_json(description.to_json()).merge().weights()[0].second, odd);
}

TEST(DescriptionJson, NeedsFunctionsOnlyForBackward) {
  Random random(0);
  const auto rule = make_rule("median", {}, random);
  torch::manual_seed(1);
  Network net(small_options(rule));
  const std::string text = net->description().to_json();
  const at::Tensor x = at::randn({3, 5}, at::kDouble);
  Case test{net, x, net->description().names(), {1.0, 1.0, 1.0}};

  const Description missing = Description::from_json(text);
  EXPECT_TRUE(missing.merge().is_missing());
  EXPECT_EQ(missing.to_json(), text);
  std::vector<at::Tensor> copies;
  for (const at::Tensor& parameter : net->parameters())
    copies.push_back(parameter.detach().clone());
  Network inference(std::make_shared<NetworkImpl>(missing, copies));
  expect_same_bits(inference->view("sub1")(x), net->view("sub1")(x));
  const auto outputs = inference->joint(x);
  expect_throws_with([&] { total_loss(test, outputs).backward(); },
                     {"'median'", "rules = {'median'", "merge::function"});

  Network again(std::make_shared<NetworkImpl>(
      Description::from_json(text, {.rules = {{"median", rule}}}), copies));
  total_loss(test, net->joint(x)).backward();
  total_loss(test, again->joint(x)).backward();
  const auto expected = take_gradients(net), actual = take_gradients(again);
  for (size_t i = 0; i < expected.size(); ++i) expect_same_bits(actual[i], expected[i]);
}

TEST(DescriptionJson, RefusesWhatIsNoDocument) {
  expect_json_refused("", {"no JSON"});
  expect_json_refused("{", {"no JSON"});
  expect_json_refused("[]", {"the description", "object", "array"});
  expect_json_refused("null", {"object", "null"});
  expect_json_refused("\xff\xfe", {"no JSON"});
  expect_json_refused(kDocument + "x", {"no JSON"});
  expect_json_refused(kDocument + std::string("\0x", 2), {"NUL"});
  expect_json_refused("{\"nsn\": 1e999}", {"no JSON"});
  expect_json_refused("{\"nsn\": \"\xff\"}", {"no JSON"});
  for (size_t length = 0; length < kDocument.size(); length += 7) {
    expect_json_refused(kDocument.substr(0, length), {"no JSON"});
  }
}

TEST(DescriptionJson, RefusesDeepNesting) {
  for (const int depth : {40, 1000, 1'000'000}) {
    const auto levels = static_cast<size_t>(depth);
    expect_json_refused(std::string(levels, '[') + std::string(levels, ']'), {"nested deeper"});
    std::string objects;
    for (int i = 0; i < std::min(depth, 1000); ++i) objects += "{\"a\":";
    expect_json_refused(objects + "1" + std::string(levels < 1000 ? levels : 1000, '}'),
                        {"nested deeper"});
  }
  expect_json_refused(std::string(1'000'000, '['), {"nsn::Description"});
}

TEST(DescriptionJson, RefusesVersions) {
  expect_json_refused(spoiled("\"nsn\": 1", "\"nsn\": 2"), {"version 1", "version 2"});
  expect_json_refused(spoiled("\"nsn\": 1,", ""), {"lacks the field 'nsn'"});
  expect_json_refused(spoiled("\"nsn\": 1", "\"nsn\": \"1\""), {"'nsn'", "integer", "\"1\""});
  expect_json_refused(spoiled("\"nsn\": 1", "\"nsn\": 1.0"), {"'nsn'", "integer"});
  expect_json_refused(spoiled("\"nsn\": 1", "\"nsn\": 18446744073709551615"), {"2^63"});
}

TEST(DescriptionJson, RefusesUnknownAndDuplicateFields) {
  expect_json_refused(spoiled("\"nsn\": 1", "\"nsn\": 1, \"extra\": 0"),
                      {"the description", "unknown field 'extra'", "'blocks'"});
  expect_json_refused(spoiled("\"shape\"", "\"size\": 1, \"shape\""),
                      {"'input'", "unknown field 'size'"});
  expect_json_refused(spoiled("\"bias\": false", "\"biased\": false"),
                      {"block 'hidden'", "'biased'", "'in_features'"});
  expect_json_refused(spoiled("\"blocks\": [\"output\"]", "\"blocks\": [\"output\"], \"x\": 1"),
                      {"sub-network 'tiny'", "unknown field 'x'"});
  expect_json_refused(
      spoiled("{\"rule\": \"two_smallest_mean\"}", "{\"rule\": \"mean\", \"weights\": {}}"),
      {"'merge'", "unknown field 'weights'"});
  expect_json_refused(spoiled("\"nsn\": 1", "\"nsn\": 1, \"nsn\": 1"), {"'nsn'", "twice"});
  expect_json_refused(spoiled("\"bias\": false", "\"bias\": true, \"bias\": false"),
                      {"'bias'", "twice"});
  expect_json_refused(spoiled("\"base\": 0.5", "\"base\": 0.5, \"base\": 1"), {"'base'", "twice"});
  // One name in two objects is fine.
  EXPECT_EQ(Description::from_json(kDocument).blocks().size(), 2U);
}

TEST(DescriptionJson, RefusesWrongKinds) {
  expect_json_refused(spoiled("[4]", "4"), {"'input'", "'shape'", "array"});
  expect_json_refused(spoiled("[4]", "[4.5]"), {"'shape'", "integer", "4.5"});
  expect_json_refused(spoiled("[4]", "[]"), {"input has no shape"});
  expect_json_refused(spoiled("[4]", "[0]"), {"input", "at least 1"});
  expect_json_refused(spoiled("float64", "float8"), {"'input'", "'float8'", "float32"});
  expect_json_refused(spoiled("\"dtype\": \"float64\"", "\"dtype\": 3"), {"'dtype'", "string"});
  expect_json_refused(spoiled("\"in_features\": 4", "\"in_features\": \"4\""),
                      {"block 'hidden'", "'in_features'", "integer"});
  expect_json_refused(spoiled("\"in_features\": 4,", ""),
                      {"block 'hidden'", "lacks the field 'in_features'"});
  expect_json_refused(spoiled("\"bias\": false", "\"bias\": 0"), {"'bias'", "true or false"});
  expect_json_refused(spoiled("\"dropout\": 0.5", "\"dropout\": \"0.5\""), {"'dropout'", "number"});
  expect_json_refused(spoiled("\"dropout\": 0.5", "\"dropout\": 2"), {"dropout", "from 0 to 1"});
  expect_json_refused(spoiled("gelu", "gelo"), {"activation 'gelo'", "relu"});
  expect_json_refused(spoiled("xavier_uniform", "xavier"), {"weight_init 'xavier'"});
  expect_json_refused(spoiled("\"type\": \"Dense\"", "\"type\": \"Sparse\""),
                      {"block 'hidden'", "'Sparse'", "'Dense'"});
  expect_json_refused(spoiled("\"name\": \"hidden\", ", ""), {"a block", "lacks the field 'name'"});
  expect_json_refused(spoiled("[\"output\"]", "[3]"), {"sub-network 'tiny'", "'blocks'", "string"});
  expect_json_refused(spoiled("[\"output\"]", "\"output\""), {"'tiny'", "'blocks'", "array"});
  expect_json_refused(spoiled("{\"output\": 0.25}", "[0.25]"), {"'tiny'", "'dropout'", "object"});
  expect_json_refused(spoiled("{\"output\": 0.25}", "{\"output\": null}"), {"'output'", "number"});
  expect_json_refused(spoiled("{\"output\": 0.25}", "{\"hidden\": 0.25}"),
                      {"'tiny'", "'hidden'", "does not keep"});
  expect_json_refused(spoiled("\"two_smallest_mean\"", "\"median\""),
                      {"unknown merge rule 'median'", "two_smallest_mean"});
  expect_json_refused(spoiled("{\"rule\": \"two_smallest_mean\"}", "{}"), {"lacks", "'rule'"});
  expect_json_refused(spoiled("{\"rule\": \"two_smallest_mean\"}", "{\"rule\": \"function\"}"),
                      {"lacks", "'name'"});
  expect_json_refused(spoiled("\"tiny\": 2", "\"tiny\": true"), {"'tiny'", "number"});
  expect_json_refused(spoiled(", \"tiny\": 2", ""), {"no coefficient", "'tiny'"});
}

/// A description with these blocks, and so many sub-networks that keep the first.
std::string document(const std::string& blocks, int subnetworks = 0, const std::string& more = "") {
  std::string text = "{\"nsn\": 1, \"input\": {\"shape\": [4]}, \"blocks\": [" + blocks + "]";
  text += ", \"subnetworks\": [";
  for (int i = 0; i < subnetworks; ++i) {
    text += (i > 0 ? ", " : "") + std::string("{\"name\": \"s") + std::to_string(i) +
            "\", \"blocks\": [\"a\"]}";
  }
  return text + "]" + more + "}";
}

TEST(DescriptionJson, RefusesMoreThanItsLimits) {
  const std::string act = "{\"name\": \"a\", \"type\": \"Activation\", \"function\": \"relu\"}";
  EXPECT_EQ(Description::from_json(document(act, 1024)).subnetworks().size(), 1025U);
  expect_json_refused(document(act, 1025), {"at most 1024 sub-networks", "1025"});

  // A few bytes of a sub-network ask for all the blocks inside the one that it keeps.
  std::string inner;
  for (int i = 0; i < 1000; ++i) {
    inner += (i > 0 ? ", " : "") + std::string("{\"name\": \"b") + std::to_string(i) +
             "\", \"type\": \"Activation\", \"function\": \"relu\"}";
  }
  const std::string sequence =
      "{\"name\": \"a\", \"type\": \"Sequence\", \"blocks\": [" + inner + "]}";
  EXPECT_EQ(Description::from_json(document(sequence, 98)).subnetworks().size(), 99U);
  expect_json_refused(document(sequence, 99), {"more than 100000 blocks together"});

  std::string fields;
  for (int i = 0; i < 4096; ++i) fields += "\"s" + std::to_string(i) + "\": 1, ";
  expect_json_refused(document(act, 0, ", \"x\": {" + fields + "\"s\": 1}"),
                      {"an object of more than 4096 fields"});
  std::string values = "1";
  for (int i = 0; i < 2'000'000; ++i) values += ",1";
  expect_json_refused(document(act, 0, ", \"x\": [" + values + "]"), {"more than 2000000 values"});
}

TEST(DescriptionJson, ActivationsAndCountsDoNotOverflow) {
  const auto conv = [](const std::string& name, const std::string& options) {
    return "{\"name\": \"" + name + "\", \"in_channels\": 1, \"out_channels\": 1, " + options + "}";
  };
  const std::string image = "\"shape\": [1, 1000000000, 1000000000]";
  const auto on_image = [&](const std::string& blocks) {
    std::string text = document(blocks);
    text.replace(text.find("\"shape\": [4]"), std::string("\"shape\": [4]").size(), image);
    return text;
  };
  expect_json_refused(
      on_image(conv("a", "\"type\": \"ConvTranspose2d\", \"kernel_size\": 1, \"stride\": 2000")),
      {"block 'a'", "more than 2^60 elements"});
  expect_json_refused(
      on_image("{\"name\": \"a\", \"type\": \"Upsample\", \"scale_factor\": 1073741824}"),
      {"block 'a'", "more than 2^60 elements"});
  const Description many = Description::from_json(
      on_image(conv("a", "\"type\": \"Conv2d\", \"kernel_size\": 1000000, \"padding\": 500000")));
  EXPECT_EQ(many.subnetworks()[0].flops, std::numeric_limits<int64_t>::max());
}

TEST(DescriptionJson, RefusesSizesThatOverflow) {
  expect_json_refused(spoiled("\"in_features\": 4", "\"in_features\": 9223372036854775807"),
                      {"'in_features'", "at most 2^30"});
  expect_json_refused(spoiled("\"in_features\": 4", "\"in_features\": 9223372036854775808"),
                      {"'in_features'", "2^63"});
  expect_json_refused(spoiled("\"in_features\": 4", "\"in_features\": -4"), {"in_features", "-4"});
  expect_json_refused(spoiled("[4]", "[4611686018427387904, 4]"), {"2^60"});
}

TEST(DescriptionJson, NamesThatNoJsonHoldsAreErrorsOfNsn) {
  const auto rule = merge::function(
      "\xff", [](const std::vector<merge::LaneGradient>& all) { return all[0].gradient; });
  expect_throws_with<c10::Error>([&] { Description(two_blocks().merge(rule)).to_json(); },
                                 {"UTF-8"});
  const double infinity = std::numeric_limits<double>::infinity();
  expect_throws_with([&] { merge::weighted({{"base", infinity}}); }, {"'base'", "finite"});
}

}  // namespace
}  // namespace nsn::test
