#include <nsn/network/schedule.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

#include "bindings.h"

namespace nsn::bindings {

void bind_schedule(py::module_& m) {
  using schedule::Schedule;
  using schedule::Turn;
  // Under the GIL: a function of one's own is Python's.
  py::class_<Schedule>(m, "Schedule")
      .def_property_readonly("seed", &Schedule::seed)
      .def("weigh", [](Schedule& schedule, const std::string& name,
                       double weight) { schedule.weight(name, weight); })
      .def("at", [](const Schedule& schedule, int64_t step, int64_t epoch) {
        Turn turn = schedule.at(step, epoch);
        return std::make_pair(std::move(turn.names), std::move(turn.weights));
      });
  m.def("schedule_all", &schedule::all);
  m.def("schedule_sandwich", [](const Description& description, int64_t others, uint64_t seed) {
    return schedule::sandwich(description, others, seed);
  });
  m.def("schedule_random", [](const Description& description, int64_t count, uint64_t seed) {
    return schedule::random(description, count, seed);
  });
  m.def("schedule_from_epoch", &schedule::from_epoch);
  m.def("schedule_function", [](const Description& description, const py::function& function) {
    return Schedule(description, [function](int64_t step, int64_t epoch) {
      auto [names, weights] =
          function(step, epoch)
              .cast<std::pair<std::vector<std::string>, std::map<std::string, double>>>();
      return Turn{std::move(names), std::move(weights)};
    });
  });
}

}  // namespace nsn::bindings
