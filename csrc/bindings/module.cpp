#include "bindings.hpp"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of pyids; pyids.ops and pyids.clustering are its public face.";
  module.attr("__version__") = PYIDS_VERSION;
  pyids::bindings::register_greedy(module);
  pyids::bindings::register_kmeans(module);
  pyids::bindings::register_rows(module);
  pyids::bindings::register_sampling(module);
  pyids::bindings::register_tokens(module);
}
