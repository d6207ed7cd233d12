#include "bindings.hpp"

namespace py = pybind11;

namespace pyids::bindings {

Matrix matrix_of(const py::array& array) {
  if (array.ndim() != 2) throw py::value_error("expected a 2-D array");
  if (array.dtype().kind() != 'f') throw py::type_error("expected a floating-point array");
  if (array.dtype().byteorder() == '>') {
    throw py::type_error("expected the machine's byte order: x.astype(x.dtype.newbyteorder('='))");
  }
  Matrix matrix;
  switch (array.itemsize()) {
    case 2:
      matrix.scalar = Scalar::f16;
      break;
    case 4:
      matrix.scalar = Scalar::f32;
      break;
    case 8:
      matrix.scalar = Scalar::f64;
      break;
    default:
      throw py::type_error("expected float16, float32 or float64");
  }
  // The strides of an array without rows mean nothing: NumPy may call them 0.
  if (array.shape(0) > 0 && array.shape(1) > 1 && array.strides(1) != array.itemsize()) {
    throw py::value_error("expected rows that are contiguous in memory");
  }
  matrix.data = array.data();
  matrix.n_rows = static_cast<std::size_t>(array.shape(0));
  matrix.n_cols = static_cast<std::size_t>(array.shape(1));
  matrix.stride_bytes = array.strides(0);
  return matrix;
}

}  // namespace pyids::bindings
