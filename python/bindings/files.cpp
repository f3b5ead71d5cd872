#include <nsn/checkpoint/runtime_file.h>
#include <nsn/checkpoint/tables.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "bindings.h"
#include "checkpoint/files.h"

namespace nsn::bindings {

void bind_files(py::module_& m) {
  py::class_<nsn::LoadReport>(m, "LoadReport")
      .def(py::init([](std::set<std::string> missing, uint64_t bytes_read) {
        return nsn::LoadReport{std::move(missing), bytes_read};
      }))
      .def("check_loaded", &nsn::LoadReport::check_loaded)
      .def_readonly("missing", &nsn::LoadReport::missing)
      .def_readonly("bytes_read", &nsn::LoadReport::bytes_read);
  // Paths come as bytes (os.fsencode), which need not be UTF-8.
  m.def("open_for_reading",
        [](const std::string& path) { return detail::open_for_reading(path, "read").release(); });
  m.def("write_file", [](const std::string& path, const py::buffer& content) {
    const py::buffer_info bytes = content.request();
    const py::gil_scoped_release release;
    detail::NewFile file(path);
    file.write(bytes.ptr, static_cast<uint64_t>(bytes.size * bytes.itemsize));
    file.commit();
  });
  using detail::NewFolder;
  py::class_<NewFolder>(m, "NewFolder")
      .def(py::init<const std::string&>())
      .def_property_readonly("place", [](const NewFolder& self) { return py::bytes(self.place()); })
      .def("commit", &NewFolder::commit, ReleaseGil())
      .def("discard", &NewFolder::discard, ReleaseGil());
  m.def(
      "write_checkpoint",
      [](const nsn::Description& description, const std::vector<at::Tensor>& parameters,
         const std::string& path, const nsn::Metadata& metadata) {
        nsn::write_checkpoint(description, parameters, path, metadata);
      },
      ReleaseGil());
  m.def(
      "write_runtime",
      [](const std::shared_ptr<nsn::Core>& core, const std::vector<at::Tensor>& parameters,
         const std::string& path, const std::vector<std::string>& subnetworks,
         at::ScalarType weights) {
        nsn::write_runtime(nsn::ParameterTable(core, parameters), path, subnetworks, weights);
      },
      ReleaseGil());
  m.def("read_checkpoint",
        [](const std::string& path, const std::map<std::string, py::object>& functions,
           const std::optional<std::string>& only) {
          const nsn::Supplied supplied = supply(functions);
          std::optional<nsn::Checkpoint> checkpoint;
          {
            const py::gil_scoped_release release;
            checkpoint = nsn::read_checkpoint(path, supplied, only);
          }
          return py::make_tuple(std::move(checkpoint->description),
                                std::move(checkpoint->parameters), std::move(checkpoint->report));
        });
  m.def("read_metadata", &nsn::read_metadata, ReleaseGil());
  m.def(
      "read_rest",
      [](const nsn::Description& description, const std::vector<at::Tensor>& parameters,
         nsn::LoadReport report, const std::string& path, const std::optional<std::string>& only) {
        nsn::read_rest(description, parameters, report, path, only);
        return report;
      },
      ReleaseGil());
}

}  // namespace nsn::bindings
