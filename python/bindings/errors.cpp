#include <nsn/values/error.h>
#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <cctype>
#include <string_view>

#include "bindings.h"

namespace nsn::bindings {

namespace {

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

}  // namespace

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
  } catch (const c10::IndexError& error) {
    PyErr_SetObject(PyExc_IndexError, as_text(error).ptr());
  } catch (const c10::Error& error) {
    PyErr_SetObject(PyExc_RuntimeError, as_text(error).ptr());
  } catch (python_error& error) {
    error.restore();
  }
}

}  // namespace nsn::bindings
