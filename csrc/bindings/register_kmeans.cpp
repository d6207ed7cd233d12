#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <optional>
#include <string>

#include "bindings.hpp"
#include "pyids/distance.hpp"
#include "pyids/kmeans.hpp"
#include "pyids/parallel.hpp"
#include "pyids/seeding.hpp"
#include "pyids/simd.hpp"

namespace py = pybind11;

namespace pyids::bindings {

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

using Shards = std::vector<py::array>;
using Factors = std::optional<Array<double>>;

std::vector<double> copy(const Factors& factors) {
  if (!factors) return {};
  return {factors->data(), factors->data() + factors->size()};
}

Rows rows_of(const Shards& shards, const Factors& factors) {
  std::vector<Matrix> views;
  for (const py::array& shard : shards) views.push_back(matrix_of(shard));
  return Rows(std::move(views), copy(factors));
}

void require(bool condition, const char* message) {
  if (!condition) throw py::value_error(message);
}

// Read-only, alive as long as `owner`.
template <typename T>
py::array_t<T> window(const std::vector<T>& values, const std::vector<std::size_t>& shape,
                      const py::object& owner) {
  py::array_t<T> out(shape, values.data(), owner);
  py::detail::array_proxy(out.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return out;
}

template <typename T>
py::array_t<T> list(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::int_ to_python(__int128 value) {
  const py::int_ high(static_cast<std::int64_t>(value >> 64));
  const py::int_ low(static_cast<std::uint64_t>(value));
  return py::int_((high << py::int_(64)) | low);
}

std::size_t clusters_of(const FixedScale& scale, const Array<std::int64_t>& sums,
                        const Array<std::int64_t>& mass) {
  const auto n = static_cast<std::size_t>(mass.size());
  require(n % scale.n_planes() == 0 &&
              static_cast<std::size_t>(sums.size()) == n * scale.columns.size(),
          "sums and mass: expected n_planes x n_clusters (x D) values");
  return n / scale.n_planes();
}

// The assigner and the arrays that it looks into.
struct BoundAssigner {
  Shards shards;
  std::size_t n_clusters, n_cols, n_planes;
  Assigner assigner;

  BoundAssigner(Shards s, const Factors& factors, RowWeights weights, const FixedScale& scale,
                std::size_t k, const LloydOptions& options)
      : shards(std::move(s)),
        n_clusters(k),
        n_cols(scale.columns.size()),
        n_planes(scale.n_planes()),
        assigner(rows_of(shards, factors), std::move(weights), scale, k, options) {}
};

// Says what is wrong before anything is indexed with it.
std::unique_ptr<BoundAssigner> make_assigner(Shards shards, const Factors& factors,
                                             RowWeights weights, const FixedScale& scale,
                                             std::size_t n_clusters, const LloydOptions& options) {
  const Rows rows = rows_of(shards, factors);
  if (rows.n_cols() != scale.columns.size()) {
    throw py::value_error("the extent is of rows with " + std::to_string(scale.columns.size()) +
                          " columns, these have " + std::to_string(rows.n_cols()));
  }
  const std::size_t n_classes = scale.class_exponents.size();
  require((weights.held.empty() && n_classes == 0) || weights.held.size() == rows.size(),
          "expected one weight a row");
  require(weights.in_class.size() == (n_classes > 0 ? rows.size() : 0) &&
              weights.classes.size() == weights.in_class.size(),
          "expected one class and one weight in it a row, where there are classes");
  for (std::size_t i : weights.classes) require(i < n_classes, "a class out of range");
  require(n_clusters > 0 && n_clusters <= std::size_t{1} << 31, "expected 1 to 2^31 clusters");
  return std::make_unique<BoundAssigner>(std::move(shards), factors, std::move(weights), scale,
                                         n_clusters, options);
}

}  // namespace

void register_kmeans(py::module_& module) {
  module.def("simd_level", [] { return simd_name(simd_level()); });
  module.def("resolve_threads", &resolve_threads);

  module.def(
      "largest_values",
      [](const Shards& shards, const Factors& factors, int n_threads) {
        const Rows rows = rows_of(shards, factors);
        std::vector<double> largest;
        {
          const Released released;
          largest = largest_values(rows, n_threads);
        }
        return list(largest);
      },
      py::arg("shards"), py::arg("factors"), py::arg("n_threads"));

  module.def(
      "squared_distances",
      [](const Shards& shards, const Factors& factors, const Array<double>& others, int n_threads) {
        const Rows rows = rows_of(shards, factors);
        require(others.ndim() == 2 && static_cast<std::size_t>(others.shape(1)) == rows.n_cols(),
                "others: expected as many columns as the rows have");
        const auto n_others = static_cast<std::size_t>(others.shape(0));
        py::array_t<double> out({rows.size(), n_others});
        double* to = out.mutable_data();
        const double* from = others.data();
        {
          const Released released;
          squared_distances(rows, 0, rows.size(), from, n_others, to, n_threads);
        }
        return out;
      },
      py::arg("shards"), py::arg("factors"), py::arg("others"), py::arg("n_threads"));

  module.def(
      "nearest",
      [](const Shards& shards, const Factors& factors, const Array<double>& others, std::size_t m,
         int n_threads) {
        const Rows rows = rows_of(shards, factors);
        require(others.ndim() == 2 && static_cast<std::size_t>(others.shape(1)) == rows.n_cols(),
                "others: expected as many columns as the rows have");
        const auto n_others = static_cast<std::size_t>(others.shape(0));
        require(m >= 1 && m <= n_others, "expected 1 <= m <= number of others");
        py::array_t<std::int32_t> indices({rows.size(), m});
        py::array_t<double> distances({rows.size(), m});
        std::int32_t* to_indices = indices.mutable_data();
        double* to_distances = distances.mutable_data();
        const double* from = others.data();
        {
          const Released released;
          nearest(rows, from, n_others, m, to_indices, to_distances, n_threads);
        }
        return py::make_tuple(indices, distances);
      },
      py::arg("shards"), py::arg("factors"), py::arg("others"), py::arg("m"), py::arg("n_threads"));

  module.def(
      "lower_to_distance",
      [](const Shards& shards, const Factors& factors, const Array<double>& other,
         py::array_t<double, py::array::c_style> nearest, int n_threads) {
        const Rows rows = rows_of(shards, factors);
        require(static_cast<std::size_t>(other.size()) == rows.n_cols() &&
                    static_cast<std::size_t>(nearest.size()) == rows.size(),
                "expected one value a column in other, one a row in nearest");
        double* to = nearest.mutable_data();
        const double* from = other.data();
        const Released released;
        lower_to_distance(rows, from, to, n_threads);
      },
      py::arg("shards"), py::arg("factors"), py::arg("other"), py::arg("nearest").noconvert(),
      py::arg("n_threads"));

  py::class_<FixedScale>(module, "FixedScale")
      .def(py::init([](const Array<double>& largest, double largest_weight, std::size_t n_rows,
                       std::vector<int> classes) {
             return FixedScale({largest.data(), largest.data() + largest.size()}, largest_weight,
                               n_rows, std::move(classes));
           }),
           py::arg("largest"), py::arg("largest_weight"), py::arg("n_rows"),
           py::arg("classes") = std::vector<int>{})
      .def_property_readonly("n_planes", &FixedScale::n_planes)
      // What one row adds to its cluster.
      .def(
          "row",
          [](const FixedScale& s, const Array<double>& row, double weight,
             std::size_t in_class) -> py::tuple {
            const std::size_t d = s.columns.size(), planes = s.n_planes();
            require(static_cast<std::size_t>(row.size()) == d && 2 * in_class < planes + 1,
                    "expected one value a column and one of the classes");
            std::vector<double> values(row.data(), row.data() + d);
            std::vector<std::int64_t> sums(planes * d), mass(planes);
            s.add(values.data(), weight, in_class, 1, 0, 1, sums.data(), mass.data());
            if (planes == 1) return py::make_tuple(list(sums), mass[0]);
            return py::make_tuple(list(sums).reshape({planes, d}), list(mass));
          },
          py::arg("row"), py::arg("weight"), py::arg("in_class"))
      // Sums (K, D) and masses (K,) of all planes together, as float64 holds them.
      .def(
          "combine",
          [](const FixedScale& s, const Array<std::int64_t>& sums,
             const Array<std::int64_t>& mass) {
            const std::size_t n_clusters = clusters_of(s, sums, mass);
            py::array_t<double> out({n_clusters, s.columns.size()}),
                masses(mass.size() / static_cast<py::ssize_t>(s.n_planes()));
            double* to = out.mutable_data();
            for (std::size_t j = 0; j < n_clusters; ++j, to += s.columns.size()) {
              int exponent = 0;
              const double weight =
                  s.combine(sums.data(), mass.data(), j, n_clusters, to, &exponent);
              masses.mutable_data()[j] = std::ldexp(weight, exponent);
              for (std::size_t t = 0; t < s.columns.size(); ++t)
                to[t] = std::ldexp(to[t], exponent);
            }
            return py::make_tuple(out, masses);
          },
          py::arg("sums"), py::arg("mass"))
      .def_property_readonly("columns", [](const FixedScale& s) { return list(s.columns); })
      .def_readonly("mass", &FixedScale::mass);

  py::class_<BoundAssigner>(module, "Assigner")
      .def(py::init([](Shards shards, const Factors& factors, const Factors& weights,
                       const FixedScale& scale, std::size_t n_clusters, int n_threads,
                       std::size_t max_memory_bytes, bool keep_codes, const Factors& in_class,
                       const std::optional<Array<std::uint16_t>>& classes) {
             RowWeights all{copy(weights), copy(in_class), {}};
             if (classes) all.classes.assign(classes->data(), classes->data() + classes->size());
             return make_assigner(std::move(shards), factors, std::move(all), scale, n_clusters,
                                  LloydOptions{n_threads, max_memory_bytes, keep_codes});
           }),
           py::arg("shards"), py::arg("factors"), py::arg("weights"), py::arg("scale"),
           py::arg("n_clusters"), py::arg("n_threads"), py::arg("max_memory_bytes"),
           py::arg("keep_codes"), py::arg("in_class") = py::none(), py::arg("classes") = py::none())
      .def(
          "assign",
          [](BoundAssigner& self, const Array<double>& centers) {
            require(static_cast<std::size_t>(centers.size()) == self.n_clusters * self.n_cols,
                    "centers: expected n_clusters x D values");
            const double* from = centers.data();
            const Released released;
            return self.assigner.assign(from);
          },
          py::arg("centers"))
      .def_property_readonly("labels",
                             [](const BoundAssigner& s) { return list(s.assigner.labels()); })
      // Views, which the next assign changes.
      .def_property_readonly("sums",
                             [](const py::object& self) {
                               const auto& s = self.cast<const BoundAssigner&>();
                               if (s.n_planes == 1) {
                                 return window(s.assigner.sums(), {s.n_clusters, s.n_cols}, self);
                               }
                               return window(s.assigner.sums(),
                                             {s.n_planes, s.n_clusters, s.n_cols}, self);
                             })
      .def_property_readonly("mass",
                             [](const py::object& self) {
                               const auto& s = self.cast<const BoundAssigner&>();
                               if (s.n_planes == 1) {
                                 return window(s.assigner.mass(), {s.n_clusters}, self);
                               }
                               return window(s.assigner.mass(), {s.n_planes, s.n_clusters}, self);
                             })
      .def("inertia",
           [](const BoundAssigner& s, int shift) {
             __int128 inertia = 0;
             {
               const Released released;
               inertia = s.assigner.inertia(shift);
             }
             return to_python(inertia);
           })
      .def("farthest", [](const BoundAssigner& s, std::size_t count) {
        std::vector<FarRow> rows;
        {
          const Released released;
          rows = s.assigner.farthest(count);
        }
        std::vector<std::pair<double, std::size_t>> out;
        for (const FarRow& far : rows) out.emplace_back(far.squared_distance, far.row);
        return out;
      });

  module.def(
      "seed_rows",
      [](const Shards& shards, const Factors& factors, const Factors& weights,
         const Array<std::int64_t>& subset, double reach, std::size_t k, std::uint64_t seed,
         int n_threads, std::size_t max_memory_bytes) {
        const Rows all = rows_of(shards, factors);
        require(all.size() > 0 && k > 0, "expected rows and clusters");
        std::vector<double> own_weights = copy(weights);
        require(own_weights.empty() || own_weights.size() == all.size(), "one weight a row");
        std::vector<std::size_t> which;
        for (py::ssize_t i = 0; i < subset.size(); ++i) {
          require(subset.data()[i] >= 0 && static_cast<std::size_t>(subset.data()[i]) < all.size(),
                  "subset: row out of range");
          which.push_back(static_cast<std::size_t>(subset.data()[i]));
        }
        std::vector<std::size_t> taken;
        {
          const Released released;
          if (which.empty()) {
            taken = seed_rows(all, own_weights, reach, k, seed, n_threads, max_memory_bytes);
          } else {
            if (!own_weights.empty()) {
              std::vector<double> some;
              for (std::size_t i : which) some.push_back(own_weights[i]);
              own_weights = some;
            }
            taken = seed_rows(all.subset(which), own_weights, reach, k, seed, n_threads,
                              max_memory_bytes);
            for (std::size_t& i : taken) i = which[i];
          }
        }
        return list(std::vector<std::int64_t>(taken.begin(), taken.end()));
      },
      py::arg("shards"), py::arg("factors"), py::arg("weights"), py::arg("subset"),
      py::arg("reach"), py::arg("k"), py::arg("seed"), py::arg("n_threads"),
      py::arg("max_memory_bytes"));

  module.def(
      "update_centers",
      [](const Array<std::int64_t>& sums, const Array<std::int64_t>& mass, const FixedScale& scale,
         const Array<double>& centers, bool wide, bool cosine) {
        const std::size_t n_clusters = clusters_of(scale, sums, mass);
        require(static_cast<std::size_t>(centers.size()) == n_clusters * scale.columns.size(),
                "centers: expected n_clusters x D values");
        py::array_t<double> out({n_clusters, scale.columns.size()});
        std::copy(centers.data(), centers.data() + centers.size(), out.mutable_data());
        const double moved = update_centers(sums.data(), mass.data(), scale, n_clusters, wide,
                                            cosine, out.mutable_data());
        return py::make_tuple(out, moved);
      },
      py::arg("sums"), py::arg("mass"), py::arg("scale"), py::arg("centers"), py::arg("wide"),
      py::arg("cosine"));
}

}  // namespace pyids::bindings
