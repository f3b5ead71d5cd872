#include <nsn/network/loss.h>
#include <nsn/network/teach.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <utility>
#include <vector>

#include "bindings.h"

namespace nsn::bindings {

void bind_loss(py::module_& m) {
  using teach::Distance;
  using teach::Kind;
  using teach::Teacher;
  py::class_<Teacher>(m, "Teacher")
      .def(py::init([](const std::string& kind, const Description& description,
                       const std::optional<at::Tensor>& output) {
        if (kind == "base") return teach::base(description);
        if (kind == "next_larger") return teach::next_larger(description);
        if (kind == "mutual") return teach::mutual(description);
        return teach::outside(description, output.value_or(at::Tensor()));
      }))
      .def("weigh", [](Teacher& teacher, double weight) { teacher.weight(weight); })
      .def("weigh_one", [](Teacher& teacher, const std::string& subnetwork,
                           double weight) { teacher.weight(subnetwork, weight); })
      .def("set_temperature",
           [](Teacher& teacher, double temperature) { teacher.temperature(temperature); })
      .def("set_distance",
           [](Teacher& teacher, bool is_squared) {
             teacher.by(is_squared ? Distance::kSquaredError : Distance::kCrossEntropy);
           })
      .def("__repr__",
           [](const Teacher& teacher) { return std::string("nsn.teach.") + teacher.name(); });
  m.def(
      "joint_loss",
      [](const std::vector<std::pair<std::string, at::Tensor>>& named,
         const std::map<std::string, at::Tensor>& targets, const std::optional<at::Tensor>& target,
         const std::map<std::string, Loss>& losses, const Loss& loss,
         const std::map<std::string, double>& weights, double label_smoothing,
         const std::map<std::string, double>& label_smoothings,
         const std::optional<Teacher>& teacher) {
        Outputs outputs;
        for (const auto& [name, output] : named) outputs.insert(name, output);
        JointLossOptions options(loss);
        for (const auto& [name, own] : losses) options.loss(name, own);
        options.weights(weights).label_smoothing(label_smoothing);
        for (const auto& [name, share] : label_smoothings) options.label_smoothing(name, share);
        if (teacher) options.teach(*teacher);
        return joint_loss(outputs, target ? Targets(*target) : Targets(targets), options);
      },
      ReleaseGil());
}

}  // namespace nsn::bindings
