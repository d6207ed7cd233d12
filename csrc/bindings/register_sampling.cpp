#include "bindings.hpp"

namespace pyids::bindings {

void register_sampling(pybind11::module_& module) { (void)module; }

}  // namespace pyids::bindings
