// Uses the installed headers and library as an application would: build, save, load, switch.
#include <ATen/ops/ones.h>
#include <nsn/nsn.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace {

/// A block of the application's own.
struct Stretch : nsn::Block {
  std::string type() const override { return "Stretch"; }
  std::vector<nsn::ParameterSpec> parameters() const override { return {{"factor", {4, 1, 1}}}; }
  at::Tensor forward(const at::Tensor& x, at::TensorList parameters, const nsn::LanePass&,
                     const nsn::BlockPass&) const override {
    return x * parameters[0];
  }
};

/// Elastic blocks, with one of the application's own among them: trained, saved, loaded, switched.
bool elastic_blocks_work(const std::string& path) {
  nsn::Network net(
      nsn::NetworkOptions()
          .input({1, 6, 6})
          .block("conv", nsn::Conv2dOptions(1, 4, 3).activation(torch::kReLU))
          .block("stretch", std::make_shared<const Stretch>())
          .block("pool", nsn::MaxPool2dOptions(2))
          .block("flat", nsn::FlattenOptions())
          .block("output", nsn::DenseOptions(16, 2))
          .subnetwork("half",
                      nsn::SubnetworkOptions({"conv", "pool", "flat", "output"}).width("conv", 0.5))
          .merge(nsn::merge::mean()));
  const auto x = at::ones({3, 1, 6, 6});
  const auto outputs = net->joint(x);
  (outputs["base"].sum() + outputs["half"].sum()).backward();
  for (const at::Tensor& parameter : net->parameters()) {
    if (!parameter.grad().defined()) return false;
  }
  nsn::save(net, path);
  const nsn::Supplied supplied{.blocks = {{"Stretch", [](const std::string&) -> nsn::BlockPtr {
                                             return std::make_shared<const Stretch>();
                                           }}}};
  const nsn::Network again = nsn::load(path, supplied);
  return again->view("base")(x).equal(net->view("base")(x)) &&
         again->view("half")(x).equal(net->view("half")(x));
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
