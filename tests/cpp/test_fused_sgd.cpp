#include <sstream>

#include "support.h"

// FusedSGD against torch::optim::SGD.

namespace nsn::test {
namespace {

using torch::optim::SGD;
using torch::optim::SGDOptions;

/// Some parameters, the last of which gets no gradient before the third step.
struct Model {
  explicit Model(at::ScalarType dtype) {
    torch::manual_seed(4);
    for (const int64_t size : {1, 7, 64, 1000}) {
      parameters.push_back(at::randn({size}, dtype).set_requires_grad(true));
    }
  }

  void backward(int step) {
    torch::manual_seed(static_cast<uint64_t>(100 + step));
    for (size_t i = 0; i < parameters.size(); ++i) {
      const at::Tensor gradient = at::randn_like(parameters[i]);
      if (i + 1 < parameters.size() || step >= 2) parameters[i].mutable_grad() = gradient;
    }
  }

  std::vector<at::Tensor> parameters;
};

TEST(FusedSGD, TakesTorchsSteps) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    for (const SGDOptions& options :
         {SGDOptions(0.1), SGDOptions(0.1).weight_decay(0.01), SGDOptions(0.1).momentum(0.9),
          SGDOptions(0.1).momentum(0.9).weight_decay(0.01).dampening(0.5),
          SGDOptions(0.1).momentum(0.9).nesterov(true)}) {
      Model ours(dtype), theirs(dtype);
      FusedSGD fused(ours.parameters, options);
      SGD plain(theirs.parameters, options);
      for (int step = 0; step < 5; ++step) {
        ours.backward(step);
        theirs.backward(step);
        fused.step();
        plain.step();
        for (size_t i = 0; i < ours.parameters.size(); ++i) {
          expect_close(ours.parameters[i].detach(), theirs.parameters[i].detach(),
                       dtype == at::kFloat ? 1e-5 : 1e-13, std::to_string(i));
        }
      }
    }
  }
}

TEST(FusedSGD, LeavesParametersWithoutGradientAlone) {
  Model model(at::kDouble);
  const at::Tensor before = model.parameters.back().detach().clone();
  FusedSGD optimizer(model.parameters, SGDOptions(0.1).momentum(0.9).weight_decay(0.5));
  model.backward(0);
  optimizer.step();
  expect_same_bits(model.parameters.back().detach(), before);
}

TEST(FusedSGD, SaysThatItWrote) {
  Model model(at::kDouble);
  FusedSGD optimizer(model.parameters, SGDOptions(0.1));
  const at::Tensor& w = model.parameters[1];
  const at::Tensor loss = w.square().sum();
  model.backward(0);
  optimizer.step();
  expect_throws_with<c10::Error>([&] { loss.backward(); }, {"inplace operation"});
}

TEST(FusedSGD, StateGoesThroughTorchsFiles) {
  Model ours(at::kDouble), theirs(at::kDouble);
  const auto options = SGDOptions(0.1).momentum(0.9);
  FusedSGD fused(ours.parameters, options);
  ours.backward(3);
  fused.step();
  std::stringstream stream;
  torch::save(fused, stream);
  SGD plain(theirs.parameters, options);
  torch::load(plain, stream);
  {
    const torch::NoGradGuard no_grad;
    for (size_t i = 0; i < ours.parameters.size(); ++i) {
      theirs.parameters[i].copy_(ours.parameters[i]);
    }
  }
  ours.backward(4);
  theirs.backward(4);
  fused.step();
  plain.step();
  for (size_t i = 0; i < ours.parameters.size(); ++i) {
    expect_close(ours.parameters[i].detach(), theirs.parameters[i].detach(), 1e-13);
  }
}

TEST(FusedSGD, CallsItsClosure) {
  Model model(at::kDouble);
  FusedSGD optimizer(model.parameters, SGDOptions(0.1));
  const at::Tensor w = model.parameters[0].detach().clone();
  const at::Tensor loss = optimizer.step([&] {
    optimizer.zero_grad();
    at::Tensor value = model.parameters[0].square().sum();
    value.backward();
    return value;
  });
  expect_close(loss.detach(), w.square().sum(), 1e-14);
  expect_close(model.parameters[0].detach(), w - 0.1 * 2 * w, 1e-14);
}

}  // namespace
}  // namespace nsn::test
