#include "pyids/prefix.hpp"

#include <algorithm>
#include <cmath>

namespace pyids {

namespace {

constexpr std::size_t kSample = 2048;

double dot(const double* x, const double* y, std::size_t d) { return kernels().product(x, y, d); }

// Makes n rows of d orthonormal, one after the other; what depends on earlier ones becomes zero.
void orthonormalize(std::vector<double>& rows, std::size_t n, std::size_t d) {
  for (std::size_t i = 0; i < n; ++i) {
    double* row = rows.data() + i * d;
    const double before = std::sqrt(dot(row, row, d));
    for (int pass = 0; pass < 2; ++pass) {
      for (std::size_t j = 0; j < i; ++j) {
        const double* other = rows.data() + j * d;
        const double along = dot(row, other, d);
        for (std::size_t t = 0; t < d; ++t) row[t] -= along * other[t];
      }
    }
    const double length = std::sqrt(dot(row, row, d));
    const double factor = length > before * 0x1p-20 ? 1 / length : 0;
    for (std::size_t t = 0; t < d; ++t) row[t] *= factor;
  }
}

// |V'V - 1| (its Frobenius norm) of the columns that are not zero.
double skewness(const std::vector<double>& axes, std::size_t n, std::size_t d) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double square = dot(axes.data() + i * d, axes.data() + i * d, d);
    if (square > 0) sum += (square - 1) * (square - 1);
    for (std::size_t j = 0; j < i; ++j) {
      const double product = dot(axes.data() + i * d, axes.data() + j * d, d);
      sum += 2 * product * product;
    }
  }
  return std::sqrt(sum) * (1 + 0x1p-20) + 0x1p-40;  // what float64 rounds of sums of products
}

}  // namespace

PrincipalAxes::PrincipalAxes(const std::vector<double>& axes, std::size_t n, std::size_t d)
    : packed_(axes.data(), n, d),
      skew_(skewness(axes, n, d)),
      // Each product is off by dot_error of the lengths; float32 rounded the row, too.
      error_(1.02 * dot_error(d) * std::sqrt(static_cast<double>(n))) {}

std::size_t PrincipalAxes::bytes_of(std::size_t n_cols) { return 16 * kSample * n_cols; }

// Subspace iteration on the sample's covariance: any subspace is right, the principal one best.
std::optional<PrincipalAxes> PrincipalAxes::of(const Rows& rows, const Coding& coding,
                                               std::size_t n_axes, double most_left) {
  const std::size_t d = rows.n_cols(), n = n_axes, m = std::min(kSample, rows.size());
  if (rows.size() == 0 || n > d) return std::nullopt;
  const std::size_t step = rows.size() / m, ld = (d + 15) / 16 * 16;
  std::vector<float> sample(m * d);
  std::vector<double> columns(d * m), axes(n * d);
  for (std::size_t i = 0; i < m; ++i) {
    float* to = sample.data() + i * d;
    rows.load_centered(i * step, coding.unit(), coding.shift().data(), to);
    for (std::size_t t = 0; t < d; ++t) columns[t * m + i] = static_cast<double>(to[t]);
  }
  const PackedRows packed_columns(columns.data(), d, m);
  for (std::size_t i = 0; i < n; ++i) {
    const float* from = sample.data() + i * m / n * d;
    std::copy(from, from + d, axes.begin() + static_cast<std::ptrdiff_t>(i * d));
  }
  std::vector<float> products(m * n), turned(n * m), sums(n * ld);
  double along = 0;
  for (int round = 0; round < 3; ++round) {
    orthonormalize(axes, n, d);
    const PackedRows packed(axes.data(), n, d);
    kernels().dot_f32(sample.data(), d, m, packed.group(0), packed.n_groups(), d, products.data(),
                      n);
    along = kernels().square_f32(products.data(), m * n);
    for (std::size_t i = 0; i < m; ++i) {
      for (std::size_t j = 0; j < n; ++j) turned[j * m + i] = products[i * n + j];
    }
    kernels().dot_f32(turned.data(), m, n, packed_columns.group(0), packed_columns.n_groups(), m,
                      sums.data(), ld);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t t = 0; t < d; ++t) axes[i * d + t] = static_cast<double>(sums[i * ld + t]);
    }
  }
  if (along < (1 - most_left) * kernels().square_f32(sample.data(), m * d)) return std::nullopt;
  orthonormalize(axes, n, d);
  for (double& v : axes) v = static_cast<double>(static_cast<float>(v));  // as they are used
  PrincipalAxes found(axes, n, d);
  if (!(found.skew_ < 0x1p-8 && found.error_ < 0x1p-8)) return std::nullopt;
  return found;
}

PrefixRow PrincipalAxes::encode(const float* projected, double square, int levels, int offset,
                                std::uint8_t* code) const {
  const CodeInfo info = kernels().encode(projected, size(), size(), levels, offset, code);
  const double most = square * (1 + 2 * kSquareError) + kTiny;
  const double along = kernels().square_f32(projected, size()) * (1 - 2 * kSquareError);
  const double left = most * (1 + 4.2 * (skew_ + error_)) - along + 2 * kTiny;
  return {info.unit, info.length, info.rest, round_up(std::sqrt(std::max(0.0, left)))};
}

}  // namespace pyids
