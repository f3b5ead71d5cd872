#include <nsn/blocks/supplied.h>
#include <nsn/values/merge.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <sstream>
#include <utility>
#include <vector>

#include "bindings.h"
#include "values/rules.h"

namespace nsn::bindings {

namespace {

/// A merge function written in Python. Copied and destroyed by threads that do not hold the GIL.
class PythonMerge {
 public:
  explicit PythonMerge(py::object function)
      : function_(new py::object(std::move(function)), [](py::object* object) {
          const py::gil_scoped_acquire gil;
          delete object;
        }) {}

  const py::object& function() const { return *function_; }

  at::Tensor operator()(const std::vector<merge::LaneGradient>& gradients) const {
    const py::gil_scoped_acquire gil;
    try {
      const py::object merged = (*function_)(gradients);
      py::detail::make_caster<at::Tensor> tensor;
      TORCH_CHECK_TYPE(tensor.load(merged, /*convert=*/false),
                       "nsn.merge.function: the rule returned a ", Py_TYPE(merged.ptr())->tp_name,
                       ", but must return the merged gradient, a tensor.");
      return py::detail::cast_op<at::Tensor>(tensor);
    } catch (py::error_already_set& error) {
      // As torch's own exception, which autograd carries through to whoever called backward.
      error.restore();
      python_error carried;
      carried.persist();
      throw carried;
    }
  }

 private:
  std::shared_ptr<py::object> function_;
};

}  // namespace

py::object python_function(const merge::Rule& rule) {
  const auto* merge = rule.merge_function().target<PythonMerge>();
  return merge == nullptr ? py::none() : merge->function();
}

/// What a rule is made of beside its name, as Python's tests name it.
static const char* takes(merge::Takes takes) {
  switch (takes) {
    case merge::Takes::kNothing:
      return "nothing";
    case merge::Takes::kWeights:
      return "weights";
    case merge::Takes::kFunction:
      return "function";
  }
  return "";
}

/// Merge functions, by name, as the library wants them supplied.
Supplied supply(const std::map<std::string, py::object>& functions) {
  Supplied supplied;
  for (const auto& [name, function] : functions) {
    supplied.rules.emplace(name, merge::function(name, PythonMerge(function)));
  }
  return supplied;
}

void bind_merge(py::module_& m) {
  using merge::LaneGradient;
  using merge::Rule;
  py::class_<LaneGradient>(m, "LaneGradient")
      .def_readonly("name", &LaneGradient::name)
      .def_property_readonly(
          "slice", [](const LaneGradient& lane) { return py::tuple(py::cast(lane.slice)); })
      .def_readonly("gradient", &LaneGradient::gradient)
      .def("padded", &LaneGradient::padded, ReleaseGil())
      .def_property_readonly("parameter_shape", [](const LaneGradient& lane) {
        return py::tuple(py::cast(lane.parameter_shape));
      });
  py::class_<Rule>(m, "Rule")
      .def_property_readonly("name", &Rule::name)
      .def_property_readonly("is_linear", &Rule::is_linear)
      .def_property_readonly("is_builtin", &Rule::is_builtin)
      .def_property_readonly("weights",
                             [](const Rule& rule) {
                               py::dict weights;
                               for (const auto& [name, coefficient] : rule.weights()) {
                                 weights[py::str(name)] = coefficient;
                               }
                               return weights;
                             })
      .def_property_readonly("function", &python_function)
      .def("__repr__", [](const Rule& rule) {
        std::ostringstream text;
        text << "nsn.merge." << (rule.is_builtin() ? rule.name() : "function") << '(';
        if (!rule.is_builtin()) text << "name='" << rule.name() << '\'';
        for (const auto& [name, coefficient] : rule.weights()) {
          text << (&name == &rule.weights().front().first ? "{" : ", ") << '\'' << name
               << "': " << coefficient;
        }
        text << (rule.weights().empty() ? ")" : "})");
        return text.str();
      });
  m.def("rules", [] {
    py::list result;
    for (const merge::KnownRule& rule : merge::known_rules()) {
      const bool is_linear = rule.coefficients != nullptr;
      result.append(py::make_tuple(rule.name, rule.doc, takes(rule.takes), is_linear));
    }
    return result;
  });
  for (const merge::KnownRule& rule : merge::known_rules()) {
    if (rule.takes != merge::Takes::kNothing) continue;
    m.def(rule.name, [&rule] { return merge::make_rule(rule); });
  }
  m.def("weighted", [](const py::dict& coefficients) {
    std::vector<std::pair<std::string, double>> weights;
    for (const auto& [name, coefficient] : coefficients) {
      weights.emplace_back(name.cast<std::string>(), coefficient.cast<double>());
    }
    return merge::weighted(std::move(weights));
  });
  m.def("function", [](std::string name, py::object function) {
    return merge::function(std::move(name), PythonMerge(std::move(function)));
  });
}

}  // namespace nsn::bindings
