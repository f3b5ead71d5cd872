#include <nsn/functional/share.h>
#include <nsn/inference/pack.h>
#include <nsn/network/core.h>
#include <nsn/network/decay.h>
#include <nsn/network/row_norms.h>
#include <nsn/network/view.h>
#include <nsn/operations/cpu.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <sstream>
#include <utility>
#include <vector>

#include "bindings.h"
#include "operations/products.h"

namespace nsn::bindings {

void bind_network(py::module_& m) {
  using nsn::Core;
  using nsn::View;
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
           [](const std::shared_ptr<Core>& core, double weight_decay, const std::string& of) {
             // Places are asked for: the tensors are Python's.
             const nsn::ParameterTable none(
                 core, std::vector<at::Tensor>(core->description().parameters().size()));
             std::vector<std::pair<double, std::vector<size_t>>> result;
             for (const auto& group : nsn::decay_groups(none, weight_decay, of)) {
               result.emplace_back(group.weight_decay, group.places);
             }
             return result;
           })
      .def(
          "bound_row_norms",
          [](const std::shared_ptr<Core>& core, const std::vector<at::Tensor>& parameters,
             double most, const std::vector<std::string>& blocks) {
            nsn::bound_row_norms(nsn::ParameterTable(core, parameters), most, blocks);
          },
          ReleaseGil());

  py::class_<View>(m, "View")
      .def(py::init([](const std::shared_ptr<Core>& core, const std::string& subnetwork,
                       const std::vector<at::Tensor>& parameters) {
        return View(nsn::ParameterTable(core, parameters), subnetwork);
      }))
      .def("__call__", &View::operator(), ReleaseGil())
      .def_property_readonly("name", &View::name)
      .def_property_readonly("parameters", &View::parameters)
      .def("stale", [](const View& view, const std::vector<at::Tensor>& current) {
        return view.stale(current);
      });

  using nsn::Pack;
  using nsn::PackedView;
  py::class_<Pack>(m, "Pack")
      .def(py::init([](const std::shared_ptr<nsn::Core>& core,
                       const std::vector<at::Tensor>& parameters,
                       const std::vector<std::string>& subnetworks) {
             return Pack(nsn::ParameterTable(core, parameters), subnetworks);
           }),
           ReleaseGil())
      .def_static("map", &Pack::map, ReleaseGil())
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
      .def("__call__", py::overload_cast<const at::Tensor&>(&PackedView::operator(), py::const_),
           ReleaseGil())
      .def("__call__",
           py::overload_cast<const at::Tensor&, const at::Tensor&>(&PackedView::operator(),
                                                                   py::const_),
           ReleaseGil())
      .def_property_readonly("name", &PackedView::name);

  m.def("share", &nsn::share, ReleaseGil());
  m.def("draw_seed", &nsn::draw_seed);
  m.def("cpu_level", &nsn::cpu_level);
  m.def("cpu_levels", &nsn::cpu_levels);
  // For benchmarks/products.py.
  const auto route_named = [](const std::string& name) {
    for (const auto route : detail::kRoutes) {
      if (detail::name_of(route) == name) return route;
    }
    throw py::value_error("nsn: there is no route '" + name + "'");
  };
  m.def("product_routes", [] {
    std::vector<std::string> names;
    for (const auto route : detail::kRoutes) names.emplace_back(detail::name_of(route));
    return names;
  });
  m.def("product_route",
        [](const at::Tensor& c, const at::Tensor& a, const at::Tensor& b, bool adds) {
          return std::string(detail::name_of(detail::route_of(c, a, b, adds)));
        });
  m.def("product_by", [route_named](const std::string& route, const at::Tensor& c,
                                    const at::Tensor& a, const at::Tensor& b, bool adds) {
    return detail::product_by(route_named(route), c, a, b, adds);
  });
}

}  // namespace nsn::bindings
