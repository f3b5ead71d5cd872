// A training step of the paper's network from C++, as a library that step.py loads, so that all
// ways of training are measured in one process and one run.

#include <ATen/ops/from_blob.h>
#include <nsn/nsn.h>

#include <cstdint>
#include <memory>

namespace {

struct Training {
  nsn::Network net;
  nsn::FusedSGD optimizer;
  at::Tensor images, labels;
};

nsn::Network paper_network() {
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

}  // namespace

extern "C" {

/// Makes a network, its optimizer and a batch, images (batch, 784) and labels (batch), copied.
NSN_API void* nsn_step_new(const float* images, const int64_t* labels, int64_t batch) {
  nsn::Network net = paper_network();
  const auto options = torch::optim::SGDOptions(0.003).momentum(0.9);
  nsn::FusedSGD optimizer(nsn::param_groups(net, options, 9e-5, "base"), options);
  const auto copy = [](const void* data, at::IntArrayRef shape, at::ScalarType dtype) {
    return at::from_blob(const_cast<void*>(data), shape, at::TensorOptions(dtype)).clone();
  };
  return new Training{net, std::move(optimizer), copy(images, {batch, 784}, at::kFloat),
                      copy(labels, {batch}, at::kLong)};
}

NSN_API void nsn_step_run(void* handle) {
  auto& training = *static_cast<Training*>(handle);
  const auto loss = nsn::joint_loss(training.net->joint(training.images), training.labels);
  training.optimizer.zero_grad();
  loss.backward();
  training.optimizer.step();
}

/// Frees the gradients that the last step left.
NSN_API void nsn_step_release(void* handle) {
  static_cast<Training*>(handle)->optimizer.zero_grad();
}

}  // extern "C"
