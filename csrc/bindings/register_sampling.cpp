#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <variant>

#include "bindings.hpp"
#include "pyids/sampling.hpp"

namespace py = pybind11;

namespace pyids::bindings {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

using Weights = std::variant<std::monostate, Array<float>, Array<double>>;
using Exclude = std::variant<std::monostate, Array<bool>, Array<std::int64_t>>;

// A NumPy array that takes the vector's memory over.
template <class T>
py::array_t<T> to_numpy(std::vector<T>&& values) {
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  const auto size = static_cast<py::ssize_t>(owner->size());
  const T* data = owner->data();
  py::capsule capsule(owner.release(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(size, data, capsule);
}

py::array_t<double> keys_to_numpy(const std::vector<SampleKey>& keys) {
  py::array_t<double> result({static_cast<py::ssize_t>(keys.size()), py::ssize_t{2}});
  auto view = result.mutable_unchecked<2>();
  for (std::size_t i = 0; i < keys.size(); ++i) {
    view(static_cast<py::ssize_t>(i), 0) = keys[i].high;
    view(static_cast<py::ssize_t>(i), 1) = keys[i].low;
  }
  return result;
}

// Shapes and dtypes are checked in pyids/sampling.py.
py::tuple sample(const Array<std::int32_t>& labels, const Array<std::int64_t>& quotas,
                 const Weights& weights, bool log_weights,
                 const std::optional<Array<std::int64_t>>& row_ids, const Exclude& exclude,
                 std::uint64_t seed, bool return_keys, bool allow_fewer, int n_threads,
                 const std::optional<Array<double>>& floors, std::size_t max_memory_bytes) {
  SampleRows rows;
  rows.size = static_cast<std::size_t>(labels.size());
  rows.labels = labels.data();
  rows.row_ids = row_ids ? row_ids->data() : nullptr;
  rows.log_weights = log_weights;
  if (auto values = std::get_if<Array<float>>(&weights)) rows.weights = values->data();
  if (auto values = std::get_if<Array<double>>(&weights)) rows.weights = values->data();
  if (auto mask = std::get_if<Array<bool>>(&exclude)) rows.excluded = mask->data();
  if (auto ids = std::get_if<Array<std::int64_t>>(&exclude)) {
    rows.excluded_ids = {ids->data(), static_cast<std::size_t>(ids->size())};
  }
  const std::span<const std::int64_t> quota(quotas.data(), static_cast<std::size_t>(quotas.size()));
  SampleOptions options{seed, n_threads, allow_fewer, return_keys};
  options.max_memory_bytes = max_memory_bytes;
  std::vector<SampleKey> keys;  // a copy, as another thread may write the array
  if (floors) {
    if (static_cast<std::size_t>(floors->size()) != 2 * quota.size()) {
      throw py::value_error("floors: expected a key of two numbers a cluster");
    }
    for (std::size_t c = 0; c < quota.size(); ++c) {
      keys.push_back({floors->data()[2 * c], floors->data()[2 * c + 1]});
    }
    options.floors = keys;
  }
  Sample drawn;
  {
    const Released released;
    drawn = sample_by_cluster(rows, quota, options);
  }
  if (!return_keys) return py::make_tuple(to_numpy(std::move(drawn.row_ids)));
  return py::make_tuple(to_numpy(std::move(drawn.row_ids)), to_numpy(std::move(drawn.labels)),
                        keys_to_numpy(drawn.keys));
}

py::array_t<std::int64_t> best(const Array<std::int64_t>& row_ids,
                               const Array<std::int32_t>& labels, const Array<double>& keys,
                               const Array<std::int64_t>& quotas) {
  const auto n = static_cast<std::size_t>(labels.size());
  static_assert(sizeof(SampleKey) == 2 * sizeof(double));
  std::vector<std::int64_t> positions;
  {
    const Released released;
    positions = best_keys({row_ids.data(), n}, {labels.data(), n},
                          {reinterpret_cast<const SampleKey*>(keys.data()), n},
                          {quotas.data(), static_cast<std::size_t>(quotas.size())});
  }
  return to_numpy(std::move(positions));
}

}  // namespace

void register_sampling(py::module_& module) {
  module.def("sample_by_cluster", &sample, py::arg("labels").noconvert(),
             py::arg("quotas").noconvert(), py::arg("weights").noconvert(), py::arg("log_weights"),
             py::arg("row_ids").noconvert(), py::arg("exclude").noconvert(), py::arg("seed"),
             py::arg("return_keys"), py::arg("allow_fewer"), py::arg("n_threads"),
             py::arg("floors").noconvert() = py::none(), py::arg("max_memory_bytes") = SIZE_MAX);
  module.def("best_keys", &best, py::arg("row_ids").noconvert(), py::arg("labels").noconvert(),
             py::arg("keys").noconvert(), py::arg("quotas").noconvert());
}

}  // namespace pyids::bindings
