#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <map>
#include <string>

// The extension module nsn._C: the C++ library as Python's modules in python/nsn use it. No logic
// stands here, only the passage from one language to the other.

namespace nsn {
struct Supplied;
namespace merge {
class Rule;
}  // namespace merge
}  // namespace nsn

namespace nsn::bindings {

namespace py = pybind11;
using namespace pybind11::literals;  // NOLINT(google-build-using-namespace)

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

void bind_merge(py::module_& m);
void bind_description(py::module_& m);
void bind_network(py::module_& m);
void bind_loss(py::module_& m);
void bind_schedule(py::module_& m);
void bind_files(py::module_& m);

/// Turns the library's errors into Python's, and their words too.
void translate(std::exception_ptr pointer);

/// The Python function of a rule; None where it has none.
py::object python_function(const merge::Rule& rule);

/// Merge functions, by name, as the library wants them supplied.
Supplied supply(const std::map<std::string, py::object>& functions);

}  // namespace nsn::bindings
