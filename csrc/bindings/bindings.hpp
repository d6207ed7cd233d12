// What the Python module is made of: one register function a topic.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "pyids/matrix.hpp"

namespace pyids::bindings {

void register_greedy(pybind11::module_& module);
void register_kmeans(pybind11::module_& module);
void register_sampling(pybind11::module_& module);

// A view of a float16, float32 or float64 array whose rows are contiguous.
Matrix matrix_of(const pybind11::array& array);

}  // namespace pyids::bindings
