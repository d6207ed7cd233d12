#include "bindings.hpp"

namespace pyids::bindings {

void register_kmeans(pybind11::module_& module) { (void)module; }

}  // namespace pyids::bindings
