// What the Python module is made of: one register function a topic.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "pyids/matrix.hpp"
#include "pyids/parallel.hpp"

namespace pyids::bindings {

void register_greedy(pybind11::module_& module);
void register_kmeans(pybind11::module_& module);
void register_rows(pybind11::module_& module);
void register_sampling(pybind11::module_& module);
void register_tokens(pybind11::module_& module);

// Long work without the GIL, which Ctrl-C ends.
class Released {
 private:
  pybind11::gil_scoped_release release_;
  InterruptScope scope_{[] {
    const pybind11::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  }};
};

// A view of a float16, float32 or float64 array whose rows are contiguous.
Matrix matrix_of(const pybind11::array& array);

}  // namespace pyids::bindings
