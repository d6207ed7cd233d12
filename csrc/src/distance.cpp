#include "pyids/distance.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "pyids/parallel.hpp"
#include "pyids/simd.hpp"

namespace pyids {

namespace {

constexpr std::size_t kBlockRows = 64;

std::size_t block_count(std::size_t n) { return (n + kBlockRows - 1) / kBlockRows; }

}  // namespace

Rows::Rows(std::vector<Matrix> shards, std::vector<double> factors)
    : shards_(std::move(shards)), offsets_{0}, factors_(std::move(factors)) {
  if (shards_.empty()) throw std::invalid_argument("Rows: no shard");
  n_cols_ = shards_[0].n_cols;
  scalar_ = shards_[0].scalar;
  if (n_cols_ > kMostColumns) throw std::invalid_argument("Rows: more than 4,194,304 columns");
  for (const Matrix& shard : shards_) {
    if (shard.n_cols != n_cols_ || shard.scalar != scalar_) {
      throw std::invalid_argument("Rows: shards differ in width or type");
    }
    offsets_.push_back(offsets_.back() + shard.n_rows);
  }
  if (!factors_.empty() && factors_.size() != size()) {
    throw std::invalid_argument("Rows: one factor a row");
  }
}

const void* Rows::find(std::size_t i) const {
  if (shards_.size() == 1) return shards_[0].row(i);
  const auto after = std::upper_bound(offsets_.begin(), offsets_.end(), i);
  const std::size_t shard = static_cast<std::size_t>(after - offsets_.begin()) - 1;
  return shards_[shard].row(i - offsets_[shard]);
}

Rows Rows::subset(std::vector<std::size_t> which) const {
  Rows some = *this;
  for (std::size_t& i : which) i = original(i);
  some.subset_ = std::move(which);
  return some;
}

void Rows::load(std::size_t i, double* out) const {
  const std::size_t at = original(i);
  kernels().widen(find(at), scalar_, n_cols_, factor(at), out);
}

bool Rows::raise_magnitudes(std::size_t i, double limit, double* largest) const {
  const std::size_t at = original(i);
  return kernels().raise_magnitudes(find(at), scalar_, n_cols_, factor(at), limit, largest);
}

void Rows::prefetch(std::size_t i) const {
  const char* row = static_cast<const char*>(find(original(i)));
  for (std::size_t at = 0; at < row_bytes(); at += 64) __builtin_prefetch(row + at);
}

void Rows::load_centered(std::size_t i, double unit, const float* shift, float* out) const {
  const std::size_t at = original(i);
  kernels().center(find(at), scalar_, n_cols_, factor(at) * unit, shift, out);
}

double squared_distance(const double* x, const double* y, std::size_t d) {
  return kernels().squared_distance(x, y, d);
}

void squared_distances(const Rows& rows, std::size_t begin, std::size_t end, const double* others,
                       std::size_t n_others, double* out, int n_threads) {
  const std::size_t d = rows.n_cols();
  parallel_blocks(block_count(end - begin), n_threads, [&](std::size_t block, int) {
    std::vector<double> row(d);
    const std::size_t first = begin + block * kBlockRows;
    for (std::size_t i = first; i < std::min(end, first + kBlockRows); ++i) {
      rows.load(i, row.data());
      double* to = out + (i - begin) * n_others;
      for (std::size_t j = 0; j < n_others; ++j) {
        to[j] = squared_distance(row.data(), others + j * d, d);
      }
    }
  });
}

void lower_to_distance(const Rows& rows, const double* other, double* nearest, int n_threads) {
  const std::size_t d = rows.n_cols();
  parallel_blocks(block_count(rows.size()), n_threads, [&](std::size_t block, int) {
    std::vector<double> row(d);
    const std::size_t first = block * kBlockRows;
    for (std::size_t i = first; i < std::min(rows.size(), first + kBlockRows); ++i) {
      rows.load(i, row.data());
      nearest[i] = std::min(nearest[i], squared_distance(row.data(), other, d));
    }
  });
}

PackedRows::PackedRows(const Rows& rows, std::size_t begin, std::size_t end)
    : n_(end - begin), d_(rows.n_cols()), values_(n_groups() * 16 * d_) {
  std::vector<double> row(d_);
  for (std::size_t i = 0; i < n_; ++i) {
    rows.load(begin + i, row.data());
    set(i, row.data());
  }
}

PackedRows::PackedRows(const double* values, std::size_t n, std::size_t d)
    : n_(n), d_(d), values_(n_groups() * 16 * d) {
  for (std::size_t i = 0; i < n_; ++i) set(i, values + i * d);
}

void PackedRows::set(std::size_t i, const double* row) {
  float* to = values_.data() + (i / 16) * 16 * d_ + i % 16;
  for (std::size_t t = 0; t < d_; ++t) to[t * 16] = static_cast<float>(row[t]);
}

void dots(const Rows& rows, std::size_t begin, std::size_t end, const PackedRows& others,
          float* out, std::size_t ld, int n_threads) {
  const std::size_t d = rows.n_cols();
  parallel_blocks(block_count(end - begin), n_threads, [&](std::size_t block, int) {
    std::vector<double> row(d);
    std::vector<float> x(kBlockRows * d);
    const std::size_t first = begin + block * kBlockRows;
    const std::size_t count = std::min(end - first, kBlockRows);
    for (std::size_t i = 0; i < count; ++i) {
      rows.load(first + i, row.data());
      std::copy(row.begin(), row.end(), x.begin() + static_cast<std::ptrdiff_t>(i * d));
    }
    kernels().dot_f32(x.data(), d, count, others.group(0), others.n_groups(), d,
                      out + (first - begin) * ld, ld);
  });
}

void nearest(const Rows& rows, const double* others, std::size_t n_others, std::size_t m,
             std::int32_t* indices, double* distances, int n_threads) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const std::size_t d = rows.n_cols();
  const PackedRows packed(others, n_others, d);
  const std::vector<double> origin(d);
  std::vector<double> squares(n_others);
  double longest = 0;
  for (std::size_t j = 0; j < n_others; ++j) {
    squares[j] = squared_distance(others + j * d, origin.data(), d);
    longest = std::max(longest, squares[j]);
  }
  const std::size_t ld = packed.n_groups() * 16;
  parallel_blocks(block_count(rows.size()), n_threads, [&](std::size_t block, int) {
    const std::size_t first = block * kBlockRows;
    const std::size_t count = std::min(rows.size() - first, kBlockRows);
    std::vector<double> row(d), about(n_others);
    std::vector<float> products(count * ld);
    std::vector<std::pair<double, std::int32_t>> kept;
    dots(rows, first, first + count, packed, products.data(), ld, 1);
    for (std::size_t i = 0; i < count; ++i) {
      rows.load(first + i, row.data());
      const double square = squared_distance(row.data(), origin.data(), d);
      // Products that float32 cannot hold decide nothing.
      const bool usable = square > 0x1p-60 && longest > 0x1p-60 && square * longest < 0x1p120;
      const double slack = usable ? 2 * dot_error(d) * std::sqrt(square * longest) : infinity;
      for (std::size_t j = 0; j < n_others; ++j) {
        about[j] = usable ? squares[j] - 2.0 * products[i * ld + j] : 0;
      }
      std::vector<double> sorted = about;
      std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(m - 1),
                       sorted.end());
      const double limit = sorted[m - 1] + 2 * slack + 0x1p-32 * (square + longest);
      kept.clear();
      for (std::size_t j = 0; j < n_others; ++j) {
        if (about[j] > limit) continue;
        kept.emplace_back(squared_distance(row.data(), others + j * d, d),
                          static_cast<std::int32_t>(j));
      }
      std::partial_sort(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(m), kept.end());
      for (std::size_t t = 0; t < m; ++t) {
        distances[(first + i) * m + t] = kept[t].first;
        indices[(first + i) * m + t] = kept[t].second;
      }
    }
  });
}

double dot_error(std::size_t d) {
  const double roundings = (static_cast<double>(d) + 4.0) * 0x1p-24;
  return roundings / (1 - roundings);
}

}  // namespace pyids
