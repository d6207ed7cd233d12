#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "pyids/pieces.hpp"

namespace py = pybind11;

namespace pyids::bindings {
namespace {

using FloatTable = py::array_t<float, py::array::c_style>;
using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

Cut cut_of(const std::string& name) {
  if (name == "none") return Cut::none;
  if (name == "dropping") return Cut::dropping;
  if (name == "keeping") return Cut::keeping;
  throw py::value_error("cut must be none, dropping or keeping");
}

// The UTF-8 of every text, which it holds itself; false where one is no text, or half of a
// surrogate pair: the tokenizer is asked then, and says what it says of such texts.
bool views_of(const py::list& texts, std::vector<std::string_view>& views) {
  views.reserve(texts.size());
  for (const py::handle text : texts) {
    py::ssize_t size = 0;
    const char* bytes =
        PyUnicode_Check(text.ptr()) ? PyUnicode_AsUTF8AndSize(text.ptr(), &size) : nullptr;
    if (bytes == nullptr) {
      PyErr_Clear();
      return false;
    }
    views.emplace_back(bytes, static_cast<std::size_t>(size));
  }
  return true;
}

py::list strings_of(const std::vector<std::string_view>& views) {
  py::list strings(views.size());
  for (std::size_t i = 0; i < views.size(); ++i) strings[i] = py::str(views[i]);
  return strings;
}

// See pyids/encoders/static.py.
class TokenMeans {
 public:
  TokenMeans(FloatTable vectors, py::function tokenize, const std::string& cut,
             std::vector<std::string> whole, py::object limit, py::object unknown, bool normalize,
             std::size_t max_bytes)
      : vectors_(std::move(vectors)),
        tokenize_(std::move(tokenize)),
        cut_(cut_of(cut)),
        whole_(std::move(whole)),
        pieces_(max_bytes) {
    if (vectors_.ndim() != 2) throw py::value_error("expected a 2-D array");
    table_.vectors = vectors_.data();
    table_.n_tokens = static_cast<std::size_t>(vectors_.shape(0));
    table_.dim = static_cast<std::size_t>(vectors_.shape(1));
    if (!limit.is_none()) table_.limit = limit.cast<std::size_t>();
    if (!unknown.is_none()) table_.unknown = unknown.cast<std::int32_t>();
    table_.normalize = normalize;
  }

  py::array_t<float> encode(const py::list& texts, int n_threads) {
    const int threads = resolve_threads(n_threads);
    py::array_t<float> means(
        {static_cast<py::ssize_t>(texts.size()), static_cast<py::ssize_t>(table_.dim)});
    std::vector<std::string_view> views;
    if (!views_of(texts, views)) {
      tokenize_(texts);
      throw py::type_error("expected texts");
    }
    TextBlock block(std::move(views), cut_, whole_);
    {
      const Released released;
      block.look_up(pieces_, mutex_, threads);
    }
    std::vector<std::int32_t> ids;
    std::vector<std::size_t> starts(1);
    if (!block.missing().empty()) ask(strings_of(block.missing()), ids, starts);
    float* out = means.mutable_data();
    {
      const Released released;
      block.complete(std::move(ids), std::move(starts), pieces_, mutex_);
      block.average(table_, threads, out);
    }
    return means;
  }

  py::dict statistics() const {
    py::dict numbers;
    numbers["pieces"] = pieces_.size();
    numbers["bytes"] = pieces_.bytes();
    numbers["times_emptied"] = pieces_.times_emptied();
    return numbers;
  }

 private:
  void ask(const py::list& texts, std::vector<std::int32_t>& ids,
           std::vector<std::size_t>& starts) const {
    const py::tuple answer = tokenize_(texts);
    const auto found = answer[0].cast<Int64Array>(), lengths = answer[1].cast<Int64Array>();
    ids.reserve(static_cast<std::size_t>(found.size()));
    for (py::ssize_t i = 0; i < found.size(); ++i) {
      const std::int64_t id = found.data()[i];
      if (id < 0 || id >= static_cast<std::int64_t>(table_.n_tokens)) {
        throw py::index_error("token " + std::to_string(id) + " has no vector: the table has " +
                              std::to_string(table_.n_tokens));
      }
      ids.push_back(static_cast<std::int32_t>(id));
    }
    for (py::ssize_t i = 0; i < lengths.size(); ++i) {
      starts.push_back(starts.back() +
                       static_cast<std::size_t>(std::max<std::int64_t>(0, lengths.data()[i])));
    }
  }

  FloatTable vectors_;
  py::function tokenize_;
  Cut cut_;
  std::vector<std::string> whole_;
  TokenTable table_;
  PieceTable pieces_;
  std::shared_mutex mutex_;
};

}  // namespace

void register_tokens(py::module_& module) {
  py::class_<TokenMeans>(module, "TokenMeans")
      .def(py::init<FloatTable, py::function, const std::string&, std::vector<std::string>,
                    py::object, py::object, bool, std::size_t>(),
           py::arg("vectors"), py::arg("tokenize"), py::arg("cut"), py::arg("whole"),
           py::arg("limit"), py::arg("unknown"), py::arg("normalize"), py::arg("max_bytes"))
      .def("encode", &TokenMeans::encode, py::arg("texts"), py::arg("n_threads") = 0)
      .def_property_readonly("statistics", &TokenMeans::statistics);
}

}  // namespace pyids::bindings
