// The extension module nsn._C: the C++ library as Python's modules in python/nsn use it. No logic
// stands here, only the passage from one language to the other.

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <nsn/checkpoint.h>
#include <nsn/core.h>
#include <nsn/cpu.h>
#include <nsn/description.h>
#include <nsn/description/lower.h>
#include <nsn/error.h>
#include <nsn/extract.h>
#include <nsn/functional.h>
#include <nsn/loss.h>
#include <nsn/merge.h>
#include <nsn/optim.h>
#include <nsn/pack.h>
#include <nsn/summary.h>
#include <nsn/view.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "files.h"
#include "products.h"

namespace py = pybind11;
using namespace pybind11::literals;  // NOLINT(google-build-using-namespace)

namespace {

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

/// A merge function written in Python. Copied and destroyed by threads that do not hold the GIL.
class PythonMerge {
 public:
  explicit PythonMerge(py::object function)
      : function_(new py::object(std::move(function)), [](py::object* object) {
          const py::gil_scoped_acquire gil;
          delete object;
        }) {}

  const py::object& function() const { return *function_; }

  at::Tensor operator()(const std::vector<nsn::merge::LaneGradient>& gradients) const {
    const py::gil_scoped_acquire gil;
    try {
      const py::object merged = (*function_)(gradients);
      TORCH_CHECK_TYPE(THPVariable_Check(merged.ptr()), "nsn.merge.function: the rule returned a ",
                       Py_TYPE(merged.ptr())->tp_name,
                       ", but must return the merged gradient, a tensor.");
      return merged.cast<at::Tensor>();
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

py::object python_function(const nsn::merge::Rule& rule) {
  const auto* merge = rule.merge_function().target<PythonMerge>();
  return merge == nullptr ? py::none() : merge->function();
}

/// The Python functions of a description's rules, by name: what its JSON cannot hold.
std::map<std::string, py::object> python_functions(const nsn::Description& description) {
  std::map<std::string, py::object> functions;
  const auto add = [&](const nsn::merge::Rule& rule) {
    if (rule.merge_function()) functions.emplace(rule.name(), python_function(rule));
  };
  add(description.merge());
  for (const auto& block : description.blocks()) add(block.rule);
  return functions;
}

/// Merge functions, by name, as the library wants them supplied.
nsn::Supplied supply(const std::map<std::string, py::object>& functions) {
  nsn::Supplied supplied;
  for (const auto& [name, function] : functions) {
    supplied.rules.emplace(name, nsn::merge::function(name, PythonMerge(function)));
  }
  return supplied;
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

/// A message of the C++ library in the words of Python: `nsn.load` for `nsn::load`, float32 for
/// Float. What stands between quotes is the user's, and stays.
std::string in_python(std::string_view message) {
  static const std::map<std::string_view, std::string_view> words = {
      {"Float", "float32"},
      {"Double", "float64"},
      {"Half", "float16"},
      {"BFloat16", "bfloat16"},
      {"Long", "int64"},
      {"Int", "int32"},
      {"Short", "int16"},
      {"Char", "int8"},
      {"Byte", "uint8"},
      {"Bool", "bool"},
      {"ComplexFloat", "complex64"},
      {"ComplexDouble", "complex128"}};
  const auto is_part = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; };
  std::string result;
  for (size_t i = 0; i < message.size();) {
    size_t end = i + 1;
    if (message[i] == '\'' && (i == 0 || !is_part(message[i - 1]))) {
      end = std::min(message.find('\'', end), message.size() - 1) + 1;
      result += message.substr(i, end - i);
    } else if (is_part(message[i])) {
      while (end < message.size() && is_part(message[end])) ++end;
      const std::string_view word = message.substr(i, end - i);
      const auto found = words.find(word);
      result += found == words.end() ? word : found->second;
    } else if (message.substr(i, 2) == "::") {
      result += '.';
      end = i + 2;
    } else {
      result += message[i];
    }
    i = end;
  }
  return result;
}

/// A message as Python's text: it may quote a file's bytes, which need not be UTF-8.
py::object as_text(const c10::Error& error) {
  const std::string text = in_python(error.what_without_backtrace());
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const nsn::FileError& error) {
    // OSError picks the subclass, such as FileNotFoundError, by the code.
    const auto path =
        py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefault(error.path().c_str()));
    const py::tuple arguments = py::make_tuple(error.code(), as_text(error), path);
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  } catch (const c10::ValueError& error) {
    PyErr_SetObject(PyExc_ValueError, as_text(error).ptr());
  } catch (const c10::TypeError& error) {
    PyErr_SetObject(PyExc_TypeError, as_text(error).ptr());
  } catch (const c10::Error& error) {
    PyErr_SetObject(PyExc_RuntimeError, as_text(error).ptr());
  } catch (python_error& error) {
    error.restore();
  }
}

void bind_merge(py::module_& m) {
  using nsn::merge::LaneGradient;
  using nsn::merge::Rule;
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
        text << "nsn.merge." << (rule.is_linear() ? rule.name() : "function") << '(';
        if (!rule.is_linear()) text << "name='" << rule.name() << '\'';
        for (const auto& [name, coefficient] : rule.weights()) {
          text << (&name == &rule.weights().front().first ? "{" : ", ") << '\'' << name
               << "': " << coefficient;
        }
        text << (rule.weights().empty() ? ")" : "})");
        return text.str();
      });
  m.def("sum", &nsn::merge::sum);
  m.def("mean", &nsn::merge::mean);
  m.def("two_smallest_mean", &nsn::merge::two_smallest_mean);
  m.def("owner", &nsn::merge::owner);
  m.def("weighted", [](const py::dict& coefficients) {
    std::vector<std::pair<std::string, double>> weights;
    for (const auto& [name, coefficient] : coefficients) {
      weights.emplace_back(name.cast<std::string>(), coefficient.cast<double>());
    }
    return nsn::merge::weighted(std::move(weights));
  });
  m.def("function", [](std::string name, py::object function) {
    return nsn::merge::function(std::move(name), PythonMerge(std::move(function)));
  });
}

void bind_core(py::module_& m) {
  using nsn::Core;
  using nsn::Description;
  using nsn::View;
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
             for (const size_t block : self.subnetwork(name).blocks) {
               names.push_back(self.blocks()[block].name);
             }
             return names;
           })
      .def("output_shape",
           [](const Description& self, const std::string& name) {
             return py::tuple(py::cast(self.subnetwork(name).output));
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
                       const std::string& name) { return self.subnetwork(name).flops; })
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
      .def("describe",
           [](const Description& self) {
             py::list result;
             for (const auto& summary : nsn::describe(self)) result.append(as_dict(summary));
             return result;
           })
      .def(
          "parameter_count",
          [](const Description& self, const std::optional<std::string>& name) {
            return name ? self.subnetwork(*name).parameter_count : self.parameter_count();
          },
          py::arg("name") = py::none())
      .def_property_readonly("merge", &Description::merge)
      .def_property_readonly("parameter_dtype", &Description::parameter_dtype)
      .def("with_dtype", &Description::with_dtype)
      .def_property_readonly("blocks_with_modes", &Description::blocks_with_modes)
      .def("index_of", &Description::index_of)
      .def("functions", &python_functions)
      .def("__eq__", [](const Description& a, const Description& b) { return a == b; })
      .def("__hash__",
           [](const Description& self) { return std::hash<std::string>()(self.to_json()); });

  // Without the GIL: everything below computes on tensors.
  py::class_<Core, std::shared_ptr<Core>>(m, "Core")
      .def(py::init<Description>())
      .def_property_readonly("description", &Core::description)
      .def("initial_parameters", &Core::initial_parameters, ReleaseGil())
      .def(
          "joint",
          [](const Core& core, const std::vector<at::Tensor>& parameters, const at::Tensor& x,
             const std::vector<size_t>& subnetworks,
             bool training) { return core.joint(parameters, x, subnetworks, training); },
          ReleaseGil())
      .def(
          "lane",
          [](const Core& core, const std::vector<at::Tensor>& parameters, const at::Tensor& x,
             const std::vector<size_t>& subnetworks, size_t lane, bool training,
             uint64_t seed) { return core.lane(parameters, x, subnetworks, lane, training, seed); },
          ReleaseGil())
      .def(
          "calibrate",
          [](const Core& core, const std::vector<at::Tensor>& parameters, const at::Tensor& x,
             const std::vector<size_t>& subnetworks) {
            core.calibrate(parameters, x, subnetworks);
          },
          ReleaseGil())
      .def("start_statistics",
           [](const Core& core, const std::vector<at::Tensor>& parameters,
              const std::vector<size_t>& subnetworks) {
             return core.start_statistics(parameters, subnetworks);
           })
      .def("take_statistics",
           [](const Core& core, const std::vector<at::Tensor>& parameters,
              const std::vector<at::Tensor>& made) { core.take_statistics(parameters, made); })
      .def(
          "dropout_mask",
          [](const Core& core, uint64_t seed, const std::string& subnetwork,
             const std::string& block, double probability, const std::vector<int64_t>& shape) {
            return core.dropout_mask(seed, subnetwork, block, probability, shape);
          },
          ReleaseGil())
      .def("decay_groups",
           [](const Core& core, size_t parameters, double weight_decay, const std::string& of) {
             std::vector<std::pair<double, std::vector<size_t>>> result;
             const std::vector<at::Tensor> none(parameters);
             for (const auto& group : nsn::decay_groups(core, none, weight_decay, of)) {
               result.emplace_back(group.weight_decay, group.places);
             }
             return result;
           });

  py::class_<View>(m, "View")
      .def(py::init([](const std::shared_ptr<Core>& core, const std::string& subnetwork,
                       const std::vector<at::Tensor>& parameters) {
        return View(core, subnetwork, parameters);
      }))
      .def("__call__", &View::operator(), ReleaseGil())
      .def_property_readonly("name", &View::name)
      .def_property_readonly("parameters", &View::parameters)
      .def("stale", [](const View& view, const std::vector<at::Tensor>& current) {
        return view.stale(current);
      });
}

void bind_pack(py::module_& m) {
  using nsn::Pack;
  using nsn::PackedView;
  py::class_<Pack>(m, "Pack")
      .def(py::init([](const std::shared_ptr<nsn::Core>& core,
                       const std::vector<at::Tensor>& parameters,
                       const std::vector<std::string>& subnetworks) {
             return Pack(core, parameters, subnetworks);
           }),
           ReleaseGil())
      .def("view", &Pack::view)
      .def(
          "stale",
          [](const Pack& pack, const std::vector<at::Tensor>& current) {
            return pack.stale(current);
          },
          ReleaseGil())
      .def(
          "refresh",
          [](Pack& pack, const std::vector<at::Tensor>& parameters) { pack.refresh(parameters); },
          ReleaseGil())
      .def_property_readonly("bytes", &Pack::bytes)
      .def("entries",
           [](const Pack& pack) {
             py::list result;
             for (const Pack::Entry& entry : pack.entries()) {
               result.append(py::dict("parameter"_a = entry.parameter,
                                      "shape"_a = py::tuple(py::cast(entry.shape)),
                                      "form"_a = entry.form, "bytes"_a = entry.bytes,
                                      "subnetworks"_a = entry.subnetworks));
             }
             return result;
           })
      .def("__str__", [](const Pack& pack) {
        std::ostringstream text;
        text << pack.entries();
        return text.str();
      });
  py::class_<PackedView>(m, "PackedView")
      .def("__call__", &PackedView::operator(), ReleaseGil())
      .def_property_readonly("name", &PackedView::name);
}

void bind_functions(py::module_& m) {
  py::class_<nsn::LoadReport>(m, "LoadReport")
      .def(py::init([](std::set<std::string> missing, uint64_t bytes_read) {
        return nsn::LoadReport{std::move(missing), bytes_read};
      }))
      .def_readonly("missing", &nsn::LoadReport::missing)
      .def_readonly("bytes_read", &nsn::LoadReport::bytes_read);
  m.def("share", &nsn::share, ReleaseGil());
  m.def("draw_seed", &nsn::draw_seed);
  m.def("cpu_level", &nsn::cpu_level);
  m.def("cpu_levels", &nsn::cpu_levels);
  // For benchmarks/products.py.
  const auto route_named = [](const std::string& name) {
    for (const auto route : nsn::detail::kRoutes) {
      if (nsn::detail::name_of(route) == name) return route;
    }
    throw py::value_error("nsn: there is no route '" + name + "'");
  };
  m.def("product_routes", [] {
    std::vector<std::string> names;
    for (const auto route : nsn::detail::kRoutes) names.emplace_back(nsn::detail::name_of(route));
    return names;
  });
  m.def("product_route",
        [](const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool adds) {
          return std::string(nsn::detail::name_of(nsn::detail::route_of(c, a, b, adds)));
        });
  m.def("product_by", [route_named](const std::string& route, const at::Tensor& c,
                                    const at::Tensor& a, const at::Tensor& b, bool adds) {
    return nsn::detail::product_by(route_named(route), c, a, b, adds);
  });
  m.def(
      "joint_loss",
      [](const std::vector<std::pair<std::string, at::Tensor>>& named, const at::Tensor& targets,
         const nsn::Loss& loss, const std::map<std::string, double>& weights) {
        nsn::Outputs outputs;
        for (const auto& [name, output] : named) outputs.insert(name, output);
        return nsn::joint_loss(outputs, targets, loss, weights);
      },
      ReleaseGil());
  // Paths come as bytes (os.fsencode), which need not be UTF-8.
  m.def("open_for_reading", [](const std::string& path) {
    return nsn::detail::open_for_reading(path, "read").release();
  });
  m.def("write_file", [](const std::string& path, const py::buffer& content) {
    const py::buffer_info bytes = content.request();
    const py::gil_scoped_release release;
    nsn::detail::NewFile file(path);
    file.write(bytes.ptr, static_cast<uint64_t>(bytes.size * bytes.itemsize));
    file.commit();
  });
  using nsn::detail::NewFolder;
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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ library behind the package nsn.";
  py::register_local_exception_translator(&translate);
  py::module_ merge = m.def_submodule("merge", "Merge rules.");
  // As an import, too: `from nsn._C.merge import Rule`.
  py::module_::import("sys").attr("modules")["nsn._C.merge"] = merge;
  bind_merge(merge);
  bind_core(m);
  bind_pack(m);
  bind_functions(m);
}
