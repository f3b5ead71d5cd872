#include "nsn/program/program.h"

#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <ostream>
#include <utility>

#include "program/attributes.h"
#include "program/shapes.h"
#include "values/dtypes.h"
#include "values/json.h"

namespace nsn {

namespace {

using detail::Json;

struct AttributesWriter {
  Json json = Json::object();
  template <typename T>
  void operator()(const char* name, const T& value) {
    json[name] = value;
  }
};

struct AttributesPrinter {
  std::ostream& stream;
  void operator()(const char* name, const std::string& value) {
    stream << ", " << name << '=' << value;
  }
  void operator()(const char* name, bool value) {
    stream << ", " << name << '=' << (value ? "true" : "false");
  }
  void operator()(const char* name, int64_t value) { stream << ", " << name << '=' << value; }
  void operator()(const char* name, double value) { stream << ", " << name << '=' << value; }
  void operator()(const char* name, const std::vector<int64_t>& value) {
    stream << ", " << name << '=' << to_string(value);
  }
};

Json write_operand(const Operand& operand) {
  const auto view = common_view({&operand.slice});
  return {{"role", operand.role},
          {"name", operand.name},
          {"place", operand.place},
          {"is_buffer", operand.is_buffer},
          {"view", view->view},
          {"kept", view->slices[0]},
          {"shape", kept_shape(operand.slice)}};
}

}  // namespace

const char* name_of(const Primitive& primitive) {
  return std::visit([](const auto& each) { return each.kName; }, primitive);
}

const Operand* Step::operand(const std::string& role) const {
  const auto found = std::find_if(operands.begin(), operands.end(),
                                  [&](const Operand& each) { return each.role == role; });
  return found == operands.end() ? nullptr : &*found;
}

size_t Program::add(Step step) {
  std::vector<Shape> inputs;
  for (const size_t value : step.inputs) {
    TORCH_CHECK_VALUE(value <= steps_.size(), "nsn::Program: the step '", name_of(step.primitive),
                      "' of block '", step.block, "' reads value ", value, ", but there are ",
                      steps_.size() + 1, " before it. Add the step that makes it first.");
    inputs.push_back(shape_of(value));
  }
  step.shape = detail::shape_of_step(step, inputs);
  steps_.push_back(std::move(step));
  output_ = steps_.size();
  return output_;
}

const Shape& Program::shape_of(size_t value) const {
  return value == 0 ? input_ : steps_.at(value - 1).shape;
}

void Program::returns(size_t value) {
  TORCH_CHECK_VALUE(value <= steps_.size(), "nsn::Program: it cannot return value ", value,
                    ", since its steps make ", steps_.size(), ". Return one of these.");
  output_ = value;
}

std::string Program::to_json(int indent) const {
  Json json{{"input", {{"shape", input_}, {"dtype", detail::dtype_name(dtype_)}}},
            {"steps", Json::array()}};
  for (const size_t i : c10::irange(steps_.size())) {
    const Step& step = steps_[i];
    AttributesWriter attributes;
    std::visit([&](const auto& each) { visit(each, attributes); }, step.primitive);
    Json operands = Json::array();
    for (const Operand& operand : step.operands) operands.push_back(write_operand(operand));
    json["steps"].push_back({{"value", i + 1},
                             {"primitive", name_of(step.primitive)},
                             {"block", step.block},
                             {"part", step.part},
                             {"inputs", step.inputs},
                             {"attributes", std::move(attributes.json)},
                             {"operands", std::move(operands)},
                             {"shape", step.shape}});
  }
  json["output"] = output_;
  return json.dump(indent);
}

std::ostream& operator<<(std::ostream& stream, const Program& program) {
  stream << "%0: " << to_string(program.input()) << '\n';
  for (const size_t i : c10::irange(program.steps().size())) {
    const Step& step = program.steps()[i];
    stream << '%' << i + 1 << " = " << name_of(step.primitive) << '(';
    const char* separator = "";
    for (const size_t value : step.inputs) {
      stream << separator << '%' << value;
      separator = ", ";
    }
    for (const Operand& operand : step.operands) {
      stream << ", " << operand.name << ' ' << to_string(operand.slice);
    }
    AttributesPrinter printer{stream};
    std::visit([&](const auto& each) { visit(each, printer); }, step.primitive);
    stream << ") -> " << to_string(step.shape) << '\n';
  }
  if (program.output() != program.steps().size()) stream << "return %" << program.output() << '\n';
  return stream;
}

}  // namespace nsn
