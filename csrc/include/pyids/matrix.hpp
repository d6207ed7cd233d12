// Views of matrices that somebody else owns: nothing here copies or frees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyids {

// More would need other bounds on what is rounded (codes.hpp).
inline constexpr std::size_t kMostColumns = std::size_t{1} << 22;

enum class Scalar : std::uint8_t { f16, f32, f64 };

// n_rows x n_cols, each row contiguous, rows `stride_bytes` apart (any sign, any size: the product
// of rows and columns may exceed 2^31, and the memory may be a mapped file).
struct Matrix {
  const void* data = nullptr;
  std::size_t n_rows = 0;
  std::size_t n_cols = 0;
  std::ptrdiff_t stride_bytes = 0;
  Scalar scalar = Scalar::f32;

  const void* row(std::size_t i) const {
    return static_cast<const char*>(data) + static_cast<std::ptrdiff_t>(i) * stride_bytes;
  }
};

// Rows of several matrices of one width and scalar type, numbered one after the other; `factors`,
// where not empty, scales row i by factors[i] wherever it is read (the cosine metric's unit length
// costs no copy).
class Rows {
 public:
  explicit Rows(std::vector<Matrix> shards, std::vector<double> factors = {});

  // Some of these rows, numbered anew in the order given.
  Rows subset(std::vector<std::size_t> which) const;

  std::size_t size() const { return subset_.empty() ? offsets_.back() : subset_.size(); }
  std::size_t n_cols() const { return n_cols_; }
  Scalar scalar() const { return scalar_; }
  std::size_t row_bytes() const { return n_cols_ << (1 + static_cast<int>(scalar_)); }
  const std::vector<Matrix>& shards() const { return shards_; }

  // The row's values, as float64 (exact, but for the factor) into out[0 .. n_cols).
  void load(std::size_t i, double* out) const;
  // largest[t] = max(largest[t], |value t|). Returns false, and may leave `largest` as it was, if a
  // value is above `limit` or no number.
  bool raise_magnitudes(std::size_t i, double limit, double* largest) const;
  // Asks for a row that will be loaded soon.
  void prefetch(std::size_t i) const;
  // The same times unit, less shift, rounded to float32.
  void load_centered(std::size_t i, double unit, const float* shift, float* out) const;

 private:
  std::size_t original(std::size_t i) const { return subset_.empty() ? i : subset_[i]; }
  double factor(std::size_t i) const { return factors_.empty() ? 1.0 : factors_[i]; }
  const void* find(std::size_t i) const;

  std::vector<Matrix> shards_;
  std::vector<std::size_t> offsets_;  // shard s holds rows offsets_[s] .. offsets_[s + 1]
  std::vector<double> factors_;       // by row of the shards
  std::vector<std::size_t> subset_;   // rows of the shards; empty: all of them
  std::size_t n_cols_ = 0;
  Scalar scalar_ = Scalar::f32;
};

}  // namespace pyids
