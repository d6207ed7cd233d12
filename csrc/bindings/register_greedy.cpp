#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bindings.hpp"
#include "pyids/greedy.hpp"

namespace py = pybind11;

namespace pyids::bindings {

namespace {

using Ids = py::array_t<std::int64_t, py::array::c_style>;
using Values = py::array_t<double, py::array::c_style>;

template <class T>
std::span<const T> view(const py::array_t<T, py::array::c_style>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

// Shards are float16 or float32, rows contiguous; `scales` (N, or empty) multiplies each row.
Rows rows_of(const std::vector<py::array>& shards, const Values& scales) {
  std::vector<Matrix> matrices;
  for (const py::array& shard : shards) {
    matrices.push_back(matrix_of(shard));
    if (matrices.back().scalar == Scalar::f64) throw py::type_error("expected float16 or float32");
  }
  const auto factors = view(scales);
  return Rows(std::move(matrices), std::vector<double>(factors.begin(), factors.end()));
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

GreedyOptions options_of(int n_threads) {
  GreedyOptions options;
  options.n_threads = n_threads;
  return options;
}

template <class Body>
auto released(Body body) {
  const Released released;
  return body();
}

}  // namespace

void register_greedy(py::module_& module) {
  module.def(
      "farthest_first",
      [](const std::vector<py::array>& shards, const Values& scales, std::size_t budget,
         std::size_t first, int n_threads) {
        const Rows rows = rows_of(shards, scales);
        const Picks picks =
            released([&] { return farthest_first(rows, budget, first, options_of(n_threads)); });
        return py::make_tuple(to_array(picks.rows), to_array(picks.values));
      },
      py::arg("shards"), py::arg("scales"), py::arg("budget"), py::arg("first"),
      py::arg("n_threads"));

  module.def(
      "facility_location",
      [](const std::vector<py::array>& shards, const Values& scales,
         const std::vector<py::array>& served_shards, const Values& served_scales,
         std::size_t budget, double alpha, const Values& quality, double epsilon,
         std::uint64_t seed, std::size_t list_bytes, int n_threads) {
        const Rows rows = rows_of(shards, scales);
        const Rows served = rows_of(served_shards, served_scales);
        FacilityOptions facility;
        facility.alpha = alpha;
        facility.quality = view(quality);
        facility.epsilon = epsilon;
        facility.seed = seed;
        facility.list_bytes = list_bytes;
        const FacilityPicks picks = released([&] {
          return facility_location(rows, served, budget, facility, options_of(n_threads));
        });
        return py::make_tuple(to_array(picks.rows), to_array(picks.values), picks.n_evaluations);
      },
      py::arg("shards"), py::arg("scales"), py::arg("served_shards"), py::arg("served_scales"),
      py::arg("budget"), py::arg("alpha"), py::arg("quality"), py::arg("epsilon"), py::arg("seed"),
      py::arg("list_bytes"), py::arg("n_threads"));

  module.def(
      "filter_near",
      [](const std::vector<py::array>& shards, const Values& scales, const Ids& order,
         std::size_t budget, double threshold, int n_threads) {
        const Rows rows = rows_of(shards, scales);
        const Picks picks = released([&] {
          return filter_near(rows, view(order), budget, threshold, options_of(n_threads));
        });
        return py::make_tuple(to_array(picks.rows), to_array(picks.values));
      },
      py::arg("shards"), py::arg("scales"), py::arg("order"), py::arg("budget"),
      py::arg("threshold"), py::arg("n_threads"));

  module.def(
      "neighbor_distances",
      [](const std::vector<py::array>& shards, const Values& scales,
         const std::vector<py::array>& reference_shards, const Values& reference_scales,
         const Ids& reference_rows, std::size_t n_neighbors, int n_threads) {
        const Rows rows = rows_of(shards, scales);
        const Rows reference = rows_of(reference_shards, reference_scales);
        return to_array(released([&] {
          return neighbor_distances(rows, reference, view(reference_rows), n_neighbors,
                                    options_of(n_threads));
        }));
      },
      py::arg("shards"), py::arg("scales"), py::arg("reference_shards"),
      py::arg("reference_scales"), py::arg("reference_rows"), py::arg("n_neighbors"),
      py::arg("n_threads"));

  module.def(
      "novel_select",
      [](const std::vector<py::array>& shards, const Values& scales, std::size_t budget,
         std::size_t first, const Values& weights, double proximity, std::size_t horizon,
         int n_threads) {
        const Rows rows = rows_of(shards, scales);
        const Picks picks = released([&] {
          return novel_select(rows, budget, first, view(weights), proximity, horizon,
                              options_of(n_threads));
        });
        return py::make_tuple(to_array(picks.rows), to_array(picks.values));
      },
      py::arg("shards"), py::arg("scales"), py::arg("budget"), py::arg("first"), py::arg("weights"),
      py::arg("proximity"), py::arg("horizon"), py::arg("n_threads"));
}

}  // namespace pyids::bindings
