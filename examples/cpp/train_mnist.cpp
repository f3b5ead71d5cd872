// Trains a network and the two smaller networks that live inside it on MNIST, then evaluates all
// three from the same weights.
//
//     train_mnist DIRECTORY [EPOCHS] [SEED] [STEPS] [CHECKPOINT]
//
// DIRECTORY holds the four idx files of MNIST, unpacked. STEPS, if not 0, ends training early.
// examples/python/train_mnist.py is the same program and ends with the same weights.

#include <nsn/nsn.h>
#include <torch/torch.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

constexpr int64_t kBatch = 128;

nsn::Network make_network() {
  const auto hidden = nsn::DenseOptions(784, 784)
                          .activation(torch::kReLU)
                          .weight_init(nsn::WeightInit::kXavierUniform)
                          .bias_init(0.01);
  const auto output =
      nsn::DenseOptions(784, 10).weight_init(nsn::WeightInit::kXavierUniform).bias_init(0.01);
  return nsn::Network(
      nsn::NetworkOptions()
          .input({784})
          .block("hidden1", nsn::DenseOptions(hidden).dropout(0.2))
          .block("hidden2", nsn::DenseOptions(hidden).dropout(0.5))
          .block("output", output)
          .subnetwork("sub1", nsn::SubnetworkOptions({"hidden2", "output"}).dropout("hidden2", 0.2))
          .subnetwork("sub2", nsn::SubnetworkOptions({"output"}))
          .merge(nsn::merge::two_smallest_mean()));
}

/// Images as rows (N, 784) and labels (N).
std::pair<torch::Tensor, torch::Tensor> read(const std::string& directory, bool train) {
  using torch::data::datasets::MNIST;
  const MNIST data(directory, train ? MNIST::Mode::kTrain : MNIST::Mode::kTest);
  return {data.images().flatten(1), data.targets()};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s DIRECTORY [EPOCHS] [SEED] [STEPS] [CHECKPOINT]\n", argv[0]);
    return 2;
  }
  const int epochs = argc > 2 ? std::atoi(argv[2]) : 3;
  torch::manual_seed(argc > 3 ? std::atoi(argv[3]) : 1);
  const int64_t most_steps = argc > 4 ? std::atoll(argv[4]) : 0;
  const auto [images, labels] = read(argv[1], /*train=*/true);
  const auto [test_images, test_labels] = read(argv[1], /*train=*/false);

  nsn::Network net = make_network();
  const auto options = torch::optim::SGDOptions(0.03).momentum(0.9);
  torch::optim::SGD optimizer(nsn::param_groups(net, options, 9e-5, "base"), options);

  int64_t steps = 0;
  for (int epoch = 1; epoch <= epochs && (most_steps == 0 || steps < most_steps); ++epoch) {
    net->train();
    double total = 0.0;
    int64_t batches = 0;
    for (const auto& batch : torch::randperm(images.size(0)).split(kBatch)) {
      const auto outputs = net->joint(images.index_select(0, batch));
      const auto loss = nsn::joint_loss(outputs, labels.index_select(0, batch));
      optimizer.zero_grad();
      loss.backward();
      optimizer.step();
      total += loss.item<double>();
      ++batches;
      if (++steps == most_steps) break;
    }
    std::printf("epoch %d: loss %.4f\n", epoch, total / static_cast<double>(batches));
  }

  for (const std::string& name : net->description().names()) {
    const nsn::View view = net->view(name);
    const auto correct = view(test_images).argmax(1).eq(test_labels).sum().item<int64_t>();
    std::printf("%-5s accuracy %.4f, %lld parameters\n", name.c_str(),
                static_cast<double>(correct) / static_cast<double>(test_labels.size(0)),
                static_cast<long long>(net->description().subnetwork(name)->parameter_count));
  }
  if (argc > 5) nsn::save(net, argv[5]);
  return 0;
}
