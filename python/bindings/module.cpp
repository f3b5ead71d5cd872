#include "bindings.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ library behind the package nsn.";
  py::register_local_exception_translator(&nsn::bindings::translate);
  py::module_ merge = m.def_submodule("merge", "Merge rules.");
  // As an import, too: `from nsn._C.merge import Rule`.
  py::module_::import("sys").attr("modules")["nsn._C.merge"] = merge;
  nsn::bindings::bind_merge(merge);
  nsn::bindings::bind_description(m);
  nsn::bindings::bind_network(m);
  nsn::bindings::bind_loss(m);
  nsn::bindings::bind_schedule(m);
  nsn::bindings::bind_files(m);
}
