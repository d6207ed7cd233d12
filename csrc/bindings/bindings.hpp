// What the Python module is made of: one register function a topic.
#pragma once

#include <pybind11/pybind11.h>

namespace pyids::bindings {

void register_greedy(pybind11::module_& module);
void register_kmeans(pybind11::module_& module);
void register_sampling(pybind11::module_& module);

}  // namespace pyids::bindings
