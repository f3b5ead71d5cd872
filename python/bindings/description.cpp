#include <nsn/description/description.h>
#include <nsn/description/lower.h>
#include <nsn/description/summary.h>
#include <nsn/extract/blocks.h>
#include <nsn/inference/plan.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <sstream>
#include <utility>
#include <vector>

#include "bindings.h"
#include "blocks/builtin.h"

namespace nsn::bindings {

namespace {

/// The Python functions of a description's rules, by name: what its JSON cannot hold.
std::map<std::string, py::object> python_functions(const nsn::Description& description) {
  std::map<std::string, py::object> functions;
  const auto add = [&](const merge::Rule& rule) {
    if (rule.merge_function()) functions.emplace(rule.name(), python_function(rule));
  };
  add(description.merge());
  for (const auto& block : description.blocks()) add(block.rule);
  return functions;
}

nsn::Description make_description(const std::string& json,
                                  const std::map<std::string, py::object>& functions) {
  return nsn::Description::from_json(json, supply(functions));
}

/// A summary as dicts and lists, as JSON would have it.
py::dict as_dict(const nsn::SubnetworkSummary& summary) {
  py::list blocks;
  for (const auto& block : summary.blocks) {
    py::dict widths;
    for (const auto& width : block.widths) {
      widths[py::str(width.name)] = py::dict("kept"_a = width.kept, "full"_a = width.full);
    }
    blocks.append(py::dict("name"_a = block.name, "type"_a = block.type, "widths"_a = widths,
                           "output"_a = block.output, "parameters"_a = block.parameters,
                           "private_parameters"_a = block.private_parameters,
                           "flops"_a = block.flops));
  }
  py::dict shared;
  for (const auto& [name, count] : summary.shared) shared[py::str(name)] = count;
  return py::dict("name"_a = summary.name, "parameters"_a = summary.parameters,
                  "private_parameters"_a = summary.private_parameters, "bytes"_a = summary.bytes,
                  "flops"_a = summary.flops, "shared"_a = shared, "blocks"_a = blocks);
}

/// An extracted block; a parameter is table[place].view(view), cut to the leading `kept`, in
/// `shape`.
py::dict as_dict(const nsn::ExtractedBlock& block) {
  py::list parameters;
  for (const auto& parameter : block.parameters) {
    const auto cut = nsn::common_view({&parameter.slice});
    parameters.append(py::dict("name"_a = parameter.name, "place"_a = parameter.place,
                               "is_buffer"_a = parameter.is_buffer, "view"_a = cut->view,
                               "kept"_a = cut->slices[0],
                               "shape"_a = nsn::kept_shape(parameter.slice)));
  }
  return py::dict("name"_a = block.name, "document"_a = block.document(),
                  "parameters"_a = parameters);
}

}  // namespace

void bind_description(py::module_& m) {
  py::class_<Description>(m, "Description")
      .def(py::init(&make_description))
      .def("to_json", &Description::to_json, py::arg("indent") = -1)
      .def_property_readonly(
          "input_shape", [](const Description& self) { return py::tuple(py::cast(self.input())); })
      .def_property_readonly("names", &Description::names)
      .def_property_readonly("blocks",
                             [](const Description& self) {
                               std::vector<std::string> names;
                               for (const auto& block : self.blocks()) names.push_back(block.name);
                               return names;
                             })
      .def("blocks_of",
           [](const Description& self, const std::string& name) {
             std::vector<std::string> names;
             const auto subnetwork = self.subnetwork(name);
             for (const size_t block : subnetwork->blocks) {
               names.push_back(self.blocks()[block].name);
             }
             return names;
           })
      .def("output_shape",
           [](const Description& self, const std::string& name) {
             return py::tuple(py::cast(self.subnetwork(name)->output));
           })
      .def("summary_of",
           [](const Description& self, const std::string& name) {
             for (const auto& block : self.blocks()) {
               if (block.name != name) continue;
               std::ostringstream text;
               text << block.block->type() << '(';
               block.block->pretty_print(text);
               text << ')';
               return text.str();
             }
             throw py::key_error(name);
           })
      .def_property_readonly("parameters",
                             [](const Description& self) {
                               std::vector<std::pair<std::string, bool>> names;
                               for (const auto& parameter : self.parameters()) {
                                 names.emplace_back(parameter.name, parameter.is_buffer);
                               }
                               return names;
                             })
      .def("flops", [](const Description& self,
                       const std::string& name) { return self.subnetwork(name)->flops; })
      .def("alone", &Description::alone)
      .def("extract",
           [](const Description& self, const std::string& name) {
             py::list result;
             for (const auto& block : nsn::extract_blocks(self, name))
               result.append(as_dict(block));
             return result;
           })
      .def("program", [](const Description& self,
                         const std::string& name) { return nsn::lower(self, name).to_json(); })
      .def("program_text",
           [](const Description& self, const std::string& name) {
             std::ostringstream text;
             text << nsn::lower(self, name);
             return text.str();
           })
      .def("plan", [](const Description& self,
                      const std::string& name) { return nsn::plan_json(self, name); })
      .def("plan_text", [](const Description& self,
                           const std::string& name) { return nsn::plan_text(self, name); })
      .def("describe",
           [](const Description& self) {
             py::list result;
             for (const auto& summary : nsn::describe(self)) result.append(as_dict(summary));
             return result;
           })
      .def(
          "parameter_count",
          [](const Description& self, const std::optional<std::string>& name) {
            return name ? self.subnetwork(*name)->parameter_count : self.parameter_count();
          },
          py::arg("name") = py::none())
      .def_property_readonly("merge", &Description::merge)
      .def_property_readonly("parameter_dtype", &Description::parameter_dtype)
      .def("with_dtype", &Description::with_dtype)
      .def_property_readonly("blocks_with_modes", &Description::blocks_with_modes)
      .def("index_of", &Description::index_of)
      .def("_find", &Description::find)
      .def_property_readonly("_axes",
                             [](const Description& self) {
                               std::vector<std::pair<std::string, size_t>> axes;
                               for (const auto& axis : self.grid().axes()) {
                                 axes.emplace_back(axis.name, axis.choices());
                               }
                               return axes;
                             })
      .def("_cell",
           [](const Description& self, const std::vector<size_t>& choices) {
             return self.grid().name(self.grid().cell(choices));
           })
      .def("functions", &python_functions)
      .def("__eq__", [](const Description& a, const Description& b) { return a == b; })
      .def("__hash__",
           [](const Description& self) { return std::hash<std::string>()(self.to_json()); });

  m.def("block_types", [] {
    py::list result;
    for (const detail::BlockType& type : detail::builtin_types()) {
      py::list options;
      for (const detail::OptionFacts& option : type.options) {
        options.append(
            py::make_tuple(option.name, option.kind, option.standard, option.doc, option.check));
      }
      result.append(py::make_tuple(type.name, options));
    }
    return result;
  });
}

}  // namespace nsn::bindings
