#include <array>
#include <cstddef>
#include <string>

#include "bindings.hpp"

namespace py = pybind11;

namespace pyids::bindings {
namespace {

// Longer conversations are left to the caller, who takes them in pieces.
constexpr py::ssize_t kMostCharacters = 1 << 16;
constexpr char kBetweenTurns = '\x1e';
constexpr char kAfterRole = '\x1f';

constexpr std::array<bool, 128> kAsciiSpace = [] {
  std::array<bool, 128> table{};
  for (const int c : {9, 10, 11, 12, 13, 28, 29, 30, 31, 32})
    table[static_cast<std::size_t>(c)] = true;
  return table;
}();

bool is_space(Py_UCS4 c) { return c < 128 ? kAsciiSpace[c] : Py_UNICODE_ISSPACE(c) != 0; }

void append_utf8(std::string& out, Py_UCS4 c) {
  const auto tail = [&](int shift) {
    out.push_back(static_cast<char>(0x80 | ((c >> shift) & 0x3F)));
  };
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out.push_back(static_cast<char>(0xC0 | (c >> 6)));
    tail(0);
  } else if (c < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | (c >> 12)));
    tail(6);
    tail(0);
  } else {
    out.push_back(static_cast<char>(0xF0 | (c >> 18)));
    tail(12);
    tail(6);
    tail(0);
  }
}

// Appends the words of a text with one space between two; false at half of a surrogate pair.
template <class Unit>
bool append_words(std::string& out, const Unit* text, py::ssize_t size) {
  const std::size_t begin = out.size();
  py::ssize_t at = 0;
  while (true) {
    while (at < size && is_space(text[at])) ++at;
    if (at == size) return true;
    if (out.size() > begin) out.push_back(' ');
    if constexpr (sizeof(Unit) == 1) {  // as it is, up to where it is no ASCII
      const py::ssize_t first = at;
      while (at < size && text[at] < 128 && !kAsciiSpace[text[at]]) ++at;
      out.append(reinterpret_cast<const char*>(text + first), static_cast<std::size_t>(at - first));
    }
    for (; at < size && !is_space(text[at]); ++at) {
      if constexpr (sizeof(Unit) > 1) {
        if (text[at] >= 0xD800 && text[at] < 0xE000) return false;
      }
      append_utf8(out, text[at]);
    }
  }
}

bool append_normalized(std::string& out, PyObject* text) {
  const py::ssize_t size = PyUnicode_GET_LENGTH(text);
  switch (PyUnicode_KIND(text)) {
    case PyUnicode_1BYTE_KIND:
      return append_words(out, PyUnicode_1BYTE_DATA(text), size);
    case PyUnicode_2BYTE_KIND:
      return append_words(out, PyUnicode_2BYTE_DATA(text), size);
    default:
      return append_words(out, PyUnicode_4BYTE_DATA(text), size);
  }
}

bool is_text(PyObject* value) { return value != nullptr && PyUnicode_CheckExact(value) != 0; }

// See pyids/chat/digest.py: None where there is more to look at than roles and contents.
py::object conversation_text(py::handle turns, py::handle role_key, py::handle content_key,
                             py::handle roles, py::handle nfc, bool whole) {
  if (PyList_CheckExact(turns.ptr()) == 0) return py::none();
  std::string out;
  bool answered = false, asked = false;
  py::ssize_t characters = 0;
  for (py::ssize_t i = 0; i < PyList_GET_SIZE(turns.ptr()); ++i) {
    PyObject* turn = PyList_GET_ITEM(turns.ptr(), i);
    if (PyDict_CheckExact(turn) == 0 || PyDict_GET_SIZE(turn) != 2) return py::none();
    PyObject* role = PyDict_GetItemWithError(turn, role_key.ptr());
    PyObject* content = PyDict_GetItemWithError(turn, content_key.ptr());
    if (!is_text(role) || !is_text(content)) return py::none();
    if (!roles.is_none()) {
      role = PyDict_GetItemWithError(roles.ptr(), role);
      if (!is_text(role)) return py::none();
    }
    characters += PyUnicode_GET_LENGTH(content);
    if (characters > kMostCharacters) return py::none();
    py::object composed;
    if (PyUnicode_IS_ASCII(content) == 0) {
      composed = nfc(py::handle(content));
      content = composed.ptr();
    }
    if (i > 0) out.push_back(kBetweenTurns);
    py::ssize_t size = 0;
    const char* name = PyUnicode_AsUTF8AndSize(role, &size);
    if (name == nullptr) {
      PyErr_Clear();
      return py::none();
    }
    out.append(name, static_cast<std::size_t>(size));
    out.push_back(kAfterRole);
    const std::size_t before = out.size();
    if (!append_normalized(out, content)) return py::none();
    const bool said = out.size() > before;
    if (size == 9 && std::string_view(name, 9) == "assistant") {
      answered = answered || said;
    } else {
      asked = asked || said;
    }
  }
  if (whole && !(answered && asked)) return py::none();
  return py::bytes(out);
}

}  // namespace

void register_rows(py::module_& module) {
  module.def("conversation_text", &conversation_text, py::arg("turns"), py::arg("role_key"),
             py::arg("content_key"), py::arg("roles"), py::arg("nfc"), py::arg("whole"));
}

}  // namespace pyids::bindings
