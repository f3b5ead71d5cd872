// Uses the installed headers and library as an application would: build, save, load, switch.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/ones.h>
#include <nsn/nsn.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace {

/// A block of the application's own, one factor a channel. Sub-networks narrow it with its input.
struct Stretch : nsn::Block {
  explicit Stretch(int64_t channels) : channels(channels) {}
  int64_t channels;

  std::string type() const override { return "Stretch"; }
  std::string options_json() const override {
    return "{\"channels\": " + std::to_string(channels) + "}";
  }
  std::vector<nsn::ParameterSpec> parameters() const override { return {{"factor", {channels}}}; }
  nsn::Fit fit(const nsn::Signal& input, const nsn::BlockUse& use) const override {
    const nsn::Axis& first = input.layout.front();
    if (first.full() != channels) nsn::misfit("(channels, *)", input);
    return {use, input, input, {nsn::Layout{first}}, 0, {}};
  }
  nsn::BlockPtr narrowed(const nsn::Fit& fit) const override {
    return std::make_shared<Stretch>(fit.input.layout.front().kept());
  }
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const nsn::LanePass&,
                     const nsn::BlockPass&) const override {
    return x * parameters[0].view({-1, 1, 1});
  }
  void initialize(at::TensorList parameters) const override {
    const at::NoGradGuard no_grad;
    parameters[0].fill_(1.0);
  }
  /// In primitives, so that copies and exports know it too.
  size_t lower(nsn::Lowering& to, size_t x) const override {
    return to.step("scale", nsn::primitives::ScaleAndShift{1}, {x}, {to.operand(0, "scale")});
  }
};

/// Reads the factory's one option, {"channels": 4}.
nsn::BlockPtr make_stretch(const std::string& options) {
  return std::make_shared<const Stretch>(std::stoll(options.substr(options.find(':') + 1)));
}

/// A merge rule of the application's own: the lanes' gradients, each brought to the same norm.
nsn::merge::Rule equal_norms() {
  return nsn::merge::function(
      "equal_norms", [](const std::vector<nsn::merge::LaneGradient>& lanes) {
        at::Tensor sum;
        for (const nsn::merge::LaneGradient& lane : lanes) {
          const at::Tensor gradient = lane.padded() / (lane.gradient.norm() + 1e-12);
          sum = sum.defined() ? sum + gradient : gradient;
        }
        return sum;
      });
}

/// Elastic blocks, with one of the application's own among them, under a rule of its own: trained,
/// saved, loaded, switched, packed, copied.
bool elastic_blocks_work(const std::string& path) {
  const nsn::Network net(nsn::NetworkOptions()
                             .input({1, 6, 6})
                             .block("conv", nsn::Conv2dOptions(1, 4, 3).activation(torch::kGELU))
                             .block("stretch", std::make_shared<const Stretch>(4))
                             .block("pool", nsn::MaxPool2dOptions(2))
                             .block("flat", nsn::FlattenOptions())
                             .block("output", nsn::DenseOptions(16, 2))
                             .subnetwork("half", nsn::SubnetworkOptions().width("conv", "out", 0.5))
                             .merge(equal_norms()));
  const auto x = at::ones({3, 1, 6, 6});
  const auto outputs = net.ptr()->joint(x);
  (outputs["base"].sum() + outputs["half"].sum()).backward();
  for (const at::Tensor& parameter : net->parameters()) {
    const double norm = parameter.grad().defined() ? parameter.grad().norm().item<double>() : 0.0;
    if (norm < 1e-3 || norm > 2.001) return false;  // two lanes of norm 1
  }
  nsn::save(net, path);
  const nsn::Supplied supplied{.rules = {{"equal_norms", equal_norms()}},
                               .blocks = {{"Stretch", make_stretch}}};
  const nsn::Network again = nsn::load(path, supplied);
  const nsn::Pack pack(net);
  for (const std::string name : {"base", "half"}) {
    const at::Tensor y = net->view(name)(x);
    const auto is_near = [&](const at::Tensor& other) {
      return (other - y).abs().max().item<double>() < 1e-5;
    };
    if (!again->view(name)(x).equal(y) || !is_near(pack.view(name)(x)) ||
        !is_near(nsn::extract(net, name)->forward(x))) {
      return false;
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string path = argv[1];
  nsn::Network net(nsn::NetworkOptions()
                       .input({4})
                       .block("hidden", nsn::DenseOptions(4, 4).activation(torch::kReLU))
                       .block("output", nsn::DenseOptions(4, 2))
                       .subnetwork("small", nsn::SubnetworkOptions({"output"})));
  nsn::save(net, path);
  const nsn::Network again = nsn::load(path);
  const auto x = at::ones({3, 4});
  for (const std::string& name : again->description().names()) {
    if (!again->view(name)(x).equal(net->view(name)(x))) {
      std::printf("%s differs after save and load\n", name.c_str());
      return 1;
    }
  }
  if (!elastic_blocks_work(path)) {
    std::printf("elastic blocks do not work\n");
    return 1;
  }
  try {
    net->view("large");
  } catch (const c10::ValueError& error) {
    std::printf("nsn %s, torch %s: ok\n", NSN_VERSION, NSN_TORCH_VERSION);
    return 0;
  }
  std::printf("an unknown sub-network was not refused\n");
  return 1;
}
