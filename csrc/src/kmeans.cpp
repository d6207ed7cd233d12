#include "pyids/kmeans.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "pyids/distance.hpp"
#include "pyids/parallel.hpp"
#include "pyids/simd.hpp"

namespace pyids {

namespace {

constexpr std::size_t kBlockRows = 64;     // rows that one thread handles at a time
constexpr std::size_t kTileGroups = 8;     // groups of 16 centres whose products are held at a time
constexpr std::size_t kChunkRows = 65536;  // rows assigned before their sums are brought up to date
constexpr double kRounding = 0x1p-20;      // covers a handful of float32 operations

double norm(const double* x, std::size_t d) {
  double sum = 0;
  for (std::size_t t = 0; t < d; ++t) sum += x[t] * x[t];
  return std::sqrt(sum);
}

float round_up(double v) {
  return std::nextafter(static_cast<float>(v), std::numeric_limits<float>::infinity());
}

float round_down(double v) {
  return std::nextafter(static_cast<float>(v), -std::numeric_limits<float>::infinity());
}

}  // namespace

std::vector<double> largest_values(const Rows& rows, int n_threads) {
  const std::size_t d = rows.n_cols();
  const std::size_t n_blocks = (rows.size() + 1023) / 1024;
  std::vector<std::vector<double>> partial(static_cast<std::size_t>(n_threads),
                                           std::vector<double>(d));
  std::vector<std::size_t> bad(static_cast<std::size_t>(n_threads), rows.size());
  parallel_blocks(n_blocks, n_threads, [&](std::size_t block, int thread) {
    std::vector<double> row(d);
    std::vector<double>& largest = partial[static_cast<std::size_t>(thread)];
    std::size_t& first_bad = bad[static_cast<std::size_t>(thread)];
    for (std::size_t i = block * 1024; i < std::min(rows.size(), (block + 1) * 1024); ++i) {
      rows.load(i, row.data());
      bool fine = true;
      for (std::size_t t = 0; t < d; ++t) {
        const double magnitude = std::fabs(row[t]);
        fine &= magnitude <= 1e150;
        largest[t] = magnitude > largest[t] ? magnitude : largest[t];
      }
      if (!fine) first_bad = std::min(first_bad, i);
    }
  });
  const std::size_t first_bad = *std::min_element(bad.begin(), bad.end());
  if (first_bad < rows.size()) {
    std::vector<double> row(d);
    rows.load(first_bad, row.data());
    std::size_t t = 0;
    while (std::fabs(row[t]) <= 1e150) ++t;
    throw std::invalid_argument("row " + std::to_string(first_bad) + ", column " +
                                std::to_string(t) + " is " +
                                (std::isnan(row[t])   ? "NaN"
                                 : std::isinf(row[t]) ? "infinity"
                                                      : "above 1e150 in magnitude"));
  }
  std::vector<double> largest(d);
  for (const auto& one : partial) {
    for (std::size_t t = 0; t < d; ++t) largest[t] = std::max(largest[t], one[t]);
  }
  return largest;
}

FixedScale::FixedScale(const std::vector<double>& largest, double largest_weight,
                       std::size_t n_rows) {
  // A term below 2^50, so that rounding it by adding 1.5 * 2^52 is exact, and N terms below 2^61.
  const double terms = std::max(0x1p11, static_cast<double>(n_rows));
  auto scale = [&](double value) {
    if (!(value > 0)) return 1.0;
    int exponent = 0;
    std::frexp(value * (terms * 0x1p-61), &exponent);
    return std::ldexp(1.0, std::min(1000, -exponent));
  };
  for (double value : largest) columns.push_back(scale(value * largest_weight));
  mass = scale(largest_weight);
}

struct Assigner::State {
  Rows rows;
  std::vector<double> weights;
  FixedScale scale;
  std::size_t n_clusters;
  LloydOptions options;

  std::vector<std::int32_t> labels;
  std::vector<double> own;  // squared distance to the own centre
  std::vector<std::int64_t> sums, mass;
  std::vector<double> shift;  // subtracted before anything is rounded to float32

  State(Rows r, std::vector<double> w, FixedScale s, std::size_t k, LloydOptions o)
      : rows(std::move(r)),
        weights(std::move(w)),
        scale(std::move(s)),
        n_clusters(k),
        options(o),
        labels(rows.size(), -1),
        own(rows.size()),
        sums(k * rows.n_cols()),
        mass(k) {
    choose_shift();
  }

  // About the mean, from a spread-out thousand of rows: any point does, a near one bounds better.
  void choose_shift() {
    const std::size_t d = rows.n_cols();
    const std::size_t step = std::max<std::size_t>(1, rows.size() / 1024);
    std::vector<double> row(d);
    std::size_t count = 0;
    shift.assign(d, 0.0);
    for (std::size_t i = 0; i < rows.size(); i += step, ++count) {
      rows.load(i, row.data());
      for (std::size_t t = 0; t < d; ++t) shift[t] += row[t];
    }
    for (double& v : shift) v /= static_cast<double>(std::max<std::size_t>(1, count));
  }

  struct Codes {  // the centres as a scan sees them
    PackedRows packed;
    std::vector<float> offset, scale, code, rest;
  };
  Codes encode(const double* centers) const;
  std::size_t assign_chunk(std::size_t begin, std::size_t end, const double* centers,
                           const Codes& codes, std::vector<std::int32_t>& before);
  void update_chunk(std::size_t begin, std::size_t end, const std::vector<std::int32_t>& before);
};

Assigner::State::Codes Assigner::State::encode(const double* centers) const {
  const std::size_t d = rows.n_cols();
  std::vector<double> shifted(n_clusters * d);
  for (std::size_t j = 0; j < n_clusters; ++j) {
    for (std::size_t t = 0; t < d; ++t) shifted[j * d + t] = centers[j * d + t] - shift[t];
  }
  Codes codes{PackedRows(shifted.data(), n_clusters, d), {}, {}, {}, {}};
  const std::size_t n = codes.packed.n_groups() * 16;
  // Padding never wins: an infinite offset.
  codes.offset.assign(n, std::numeric_limits<float>::infinity());
  codes.scale.assign(n, 0);
  codes.code.assign(n, 0);
  codes.rest.assign(n, 0);
  for (std::size_t j = 0; j < n_clusters; ++j) {
    const double length = norm(shifted.data() + j * d, d);
    codes.offset[j] = round_down(length * length * (1 - kRounding));
    codes.scale[j] = 2;
    codes.code[j] = round_up(2 * length * (dot_error(d) + kRounding));
    codes.rest[j] = round_up(2 * length);
  }
  return codes;
}

std::size_t Assigner::State::assign_chunk(std::size_t begin, std::size_t end, const double* centers,
                                          const Codes& codes, std::vector<std::int32_t>& before) {
  const std::size_t d = rows.n_cols();
  const std::size_t n_groups = codes.packed.n_groups();
  std::atomic<std::size_t> changed{0};
  parallel_blocks(
      (end - begin + kBlockRows - 1) / kBlockRows, options.n_threads, [&](std::size_t block, int) {
        const std::size_t first = begin + block * kBlockRows;
        const std::size_t count = std::min(end - first, kBlockRows);
        std::vector<double> values(count * d);
        std::vector<float> shifted(count * d);
        std::vector<float> products(count * kTileGroups * 16);
        std::vector<RowBound> bounds(count);
        std::vector<double> squares(count);
        std::vector<std::vector<Candidate>> candidates(count);
        Candidate found[kTileGroups * 16];

        for (std::size_t i = 0; i < count; ++i) {
          double* row = values.data() + i * d;
          rows.load(first + i, row);
          double square = 0, rest = 0;
          for (std::size_t t = 0; t < d; ++t) {
            const double value = row[t] - shift[t];
            const float code = static_cast<float>(value);
            shifted[i * d + t] = code;
            square += value * value;
            const double error = value - static_cast<double>(code);
            rest += error * error;
          }
          squares[i] = square;
          const double length = std::sqrt(square);
          bounds[i] = {1.0f, round_up(length * (1 + kRounding)),
                       round_up(std::sqrt(rest) + length * 0x1p-50),
                       std::numeric_limits<float>::infinity()};
          const std::int32_t label = labels[first + i];
          if (label >= 0) {
            const double own_distance =
                squared_distance(row, centers + static_cast<std::size_t>(label) * d, d);
            bounds[i].threshold =
                round_up(own_distance - square + (own_distance + square) * kRounding);
          }
        }
        for (std::size_t g = 0; g < n_groups; g += kTileGroups) {
          const std::size_t n_tile = std::min(kTileGroups, n_groups - g);
          kernels().dot_f32(shifted.data(), d, count, codes.packed.group(g), n_tile, d,
                            products.data(), kTileGroups * 16);
          const CentreBounds tile = {codes.offset.data() + 16 * g, codes.scale.data() + 16 * g,
                                     codes.code.data() + 16 * g, codes.rest.data() + 16 * g};
          for (std::size_t i = 0; i < count; ++i) {
            const std::size_t n_found =
                kernels().scan_f32(products.data() + i * kTileGroups * 16, n_tile,
                                   static_cast<std::int32_t>(16 * g), tile, bounds[i], found);
            candidates[i].insert(candidates[i].end(), found, found + n_found);
          }
        }
        for (std::size_t i = 0; i < count; ++i) {
          const double* row = values.data() + i * d;
          double best = std::numeric_limits<double>::infinity();
          std::int32_t label = -1;
          for (const Candidate& candidate : candidates[i]) {
            if (candidate.bound > bounds[i].threshold) continue;
            const double distance =
                squared_distance(row, centers + static_cast<std::size_t>(candidate.centre) * d, d);
            if (distance < best) {
              best = distance;
              label = candidate.centre;
            }
          }
          before[first - begin + i] = labels[first + i];
          if (label != labels[first + i]) changed.fetch_add(1, std::memory_order_relaxed);
          labels[first + i] = label;
          own[first + i] = best;
        }
      });
  return changed;
}

void Assigner::State::update_chunk(std::size_t begin, std::size_t end,
                                   const std::vector<std::int32_t>& before) {
  const std::size_t d = rows.n_cols();
  struct Move {
    std::size_t row;
    std::int64_t sign;
  };
  // Counting sort of the moves by cluster: one thread owns a cluster's sums.
  std::vector<std::size_t> starts(n_clusters + 1);
  auto each_move = [&](auto&& visit) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::int32_t from = before[i - begin], to = labels[i];
      if (from == to) continue;
      if (from >= 0) visit(static_cast<std::size_t>(from), Move{i, -1});
      visit(static_cast<std::size_t>(to), Move{i, 1});
    }
  };
  each_move([&](std::size_t cluster, Move) { ++starts[cluster + 1]; });
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  std::vector<Move> moves(starts.back());
  std::vector<std::size_t> next(starts.begin(), starts.end() - 1);
  each_move([&](std::size_t cluster, Move move) { moves[next[cluster]++] = move; });
  parallel_blocks(n_clusters, options.n_threads, [&](std::size_t cluster, int) {
    if (starts[cluster] == starts[cluster + 1]) return;
    std::vector<double> row(d);
    for (std::size_t m = starts[cluster]; m < starts[cluster + 1]; ++m) {
      const double weight = weights.empty() ? 1.0 : weights[moves[m].row];
      rows.load(moves[m].row, row.data());
      if (weight != 1.0) {
        for (double& v : row) v *= weight;
      }
      kernels().add_fixed(row.data(), scale.columns.data(), d, moves[m].sign,
                          sums.data() + cluster * d);
      kernels().add_fixed(&weight, &scale.mass, 1, moves[m].sign, mass.data() + cluster);
    }
  });
}

Assigner::Assigner(Rows rows, std::vector<double> weights, FixedScale scale, std::size_t n_clusters,
                   LloydOptions options)
    : state_(std::make_unique<State>(std::move(rows), std::move(weights), std::move(scale),
                                     n_clusters, options)) {}

Assigner::~Assigner() = default;

std::size_t Assigner::assign(const double* centers) {
  const State::Codes codes = state_->encode(centers);
  std::vector<std::int32_t> before(std::min(kChunkRows, state_->rows.size()));
  std::size_t changed = 0;
  for (std::size_t begin = 0; begin < state_->rows.size(); begin += kChunkRows) {
    const std::size_t end = std::min(begin + kChunkRows, state_->rows.size());
    changed += state_->assign_chunk(begin, end, centers, codes, before);
    state_->update_chunk(begin, end, before);
  }
  return changed;
}

const std::vector<std::int32_t>& Assigner::labels() const { return state_->labels; }
const std::vector<std::int64_t>& Assigner::sums() const { return state_->sums; }
const std::vector<std::int64_t>& Assigner::mass() const { return state_->mass; }

__int128 Assigner::inertia(int shift) const {
  __int128 total = 0;
  for (std::size_t i = 0; i < state_->own.size(); ++i) {
    const double weight = state_->weights.empty() ? 1.0 : state_->weights[i];
    total += static_cast<__int128>(std::ldexp(weight * state_->own[i], shift));
  }
  return total;
}

std::vector<FarRow> Assigner::farthest(std::size_t count) const {
  std::vector<FarRow> far(state_->own.size());
  for (std::size_t i = 0; i < far.size(); ++i) far[i] = {state_->own[i], i};
  const std::size_t kept = std::min(count, far.size());
  std::partial_sort(far.begin(), far.begin() + static_cast<std::ptrdiff_t>(kept), far.end(),
                    [](const FarRow& a, const FarRow& b) {
                      return a.squared_distance > b.squared_distance ||
                             (a.squared_distance == b.squared_distance && a.row < b.row);
                    });
  far.resize(kept);
  return far;
}

double update_centers(const std::int64_t* sums, const std::int64_t* mass, const FixedScale& scale,
                      std::size_t n_clusters, bool wide, bool cosine, double* centers) {
  const std::size_t d = scale.columns.size();
  double moved = 0;
  for (std::size_t j = 0; j < n_clusters; ++j) {
    if (mass[j] <= 0) continue;
    double* center = centers + j * d;
    const std::vector<double> before(center, center + d);
    const double weight = static_cast<double>(mass[j]) / scale.mass;
    for (std::size_t t = 0; t < d; ++t) {
      center[t] = static_cast<double>(sums[j * d + t]) / scale.columns[t] / weight;
    }
    if (cosine) {
      const std::vector<double> origin(d);
      const double length = std::sqrt(squared_distance(center, origin.data(), d));
      if (length > 0) {
        for (std::size_t t = 0; t < d; ++t) center[t] /= length;
      }
    }
    if (!wide) {
      for (std::size_t t = 0; t < d; ++t) center[t] = static_cast<float>(center[t]);
    }
    moved += squared_distance(center, before.data(), d);
  }
  return moved;
}

}  // namespace pyids
