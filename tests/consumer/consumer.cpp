// Uses the installed headers and library as an application would: build, save, load, switch.
#include <ATen/ops/ones.h>
#include <nsn/nsn.h>

#include <cstdio>
#include <string>

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
  try {
    net->view("large");
  } catch (const c10::ValueError& error) {
    std::printf("nsn %s, torch %s: ok\n", NSN_VERSION, NSN_TORCH_VERSION);
    return 0;
  }
  std::printf("an unknown sub-network was not refused\n");
  return 1;
}
