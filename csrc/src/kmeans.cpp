#include "pyids/kmeans.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "pyids/codes.hpp"
#include "pyids/distance.hpp"
#include "pyids/parallel.hpp"
#include "pyids/simd.hpp"

namespace pyids {

namespace {

constexpr std::size_t kBlockRows = 256;    // rows that one thread handles at a time
constexpr std::size_t kTrialRows = 4096;   // rows of the very first chunk
constexpr std::size_t kChunkRows = 65536;  // rows assigned before their sums are brought up to date

constexpr double kLargest = 1e150;  // whose square float64 holds

// Complains of the first value that is no number or too large.
[[noreturn]] void refuse(const std::string& name, const double* values) {
  std::size_t t = 0;
  while (std::fabs(values[t]) <= kLargest) ++t;
  throw std::invalid_argument(name + ", column " + std::to_string(t) + " is " +
                              (std::isnan(values[t])   ? "NaN"
                               : std::isinf(values[t]) ? "infinity"
                                                       : "above 1e150 in magnitude"));
}

// The largest magnitude of the centres, which may be rounded to just above the rows'.
double reach_of(const double* centers, std::size_t n, std::size_t d) {
  std::vector<double> largest(d);
  for (std::size_t j = 0; j < n; ++j) {
    const double* center = centers + j * d;
    if (!kernels().raise_magnitudes(center, Scalar::f64, d, 1, 2 * kLargest, largest.data())) {
      refuse("centre " + std::to_string(j), center);
    }
  }
  return d == 0 ? 0 : *std::max_element(largest.begin(), largest.end());
}

}  // namespace

std::vector<double> largest_values(const Rows& rows, int n_threads) {
  const std::size_t d = rows.n_cols();
  const std::size_t n_blocks = (rows.size() + 1023) / 1024;
  std::vector<std::vector<double>> partial(static_cast<std::size_t>(n_threads),
                                           std::vector<double>(d));
  std::vector<std::size_t> bad(static_cast<std::size_t>(n_threads), rows.size());
  parallel_blocks(n_blocks, n_threads, [&](std::size_t block, int thread) {
    std::vector<double>& largest = partial[static_cast<std::size_t>(thread)];
    std::size_t& first_bad = bad[static_cast<std::size_t>(thread)];
    for (std::size_t i = block * 1024; i < std::min(rows.size(), (block + 1) * 1024); ++i) {
      if (!rows.raise_magnitudes(i, kLargest, largest.data())) first_bad = std::min(first_bad, i);
    }
  });
  const std::size_t first_bad = *std::min_element(bad.begin(), bad.end());
  if (first_bad < rows.size()) {
    std::vector<double> row(d);
    rows.load(first_bad, row.data());
    refuse("row " + std::to_string(first_bad), row.data());
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
  reach = largest.empty() ? 0 : *std::max_element(largest.begin(), largest.end());
}

namespace {

// What is known of a row between one assignment and the next. Squared distances are less |x|^2.
struct RowState {
  RowCode code = {};
  float upper = kInfinity;   // squared distance to the own centre, at most
  float lower = -kInfinity;  // squared distance to any other centre, at least
};

}  // namespace

struct Assigner::State {
  Rows rows;
  std::vector<double> weights;
  FixedScale scale;
  std::size_t n_clusters;
  LloydOptions options;

  Coding coding;
  std::vector<std::int32_t> labels;
  std::vector<RowState> known;
  // Of all rows, where there is room for them. The thread that codes a row touches its page first.
  std::unique_ptr<std::uint8_t[]> codes;
  std::vector<std::int64_t> sums, mass;
  CentreTable centers;
  bool first = true;  // no assign yet
  bool fresh = true;  // the rows are not coded yet

  State(Rows r, std::vector<double> w, FixedScale s, std::size_t k, LloydOptions o)
      : rows(std::move(r)),
        weights(std::move(w)),
        scale(std::move(s)),
        n_clusters(k),
        options(o),
        coding(rows, Coding::int8_pays(rows.n_cols()), scale.reach),
        labels(rows.size(), -1),
        known(rows.size()),
        sums(k * rows.n_cols()),
        mass(k),
        centers(k, rows.n_cols()) {
    make_room();
  }

  void recode(bool int8, double reach) {
    coding = Coding(rows, int8, reach);
    make_room();
  }

  // Codes are kept where they fit, and where they are small beside the rows themselves.
  void make_room() {
    const std::size_t bytes = (rows.size() + kScanRows) * coding.bytes();
    const std::size_t others = rows.size() * (sizeof(RowState) + 2 * sizeof(std::int32_t));
    const bool small = coding.bytes() <= rows.row_bytes() / 2;
    const bool keep =
        coding.int8() && options.keep_codes && small && bytes + others <= options.max_memory_bytes;
    codes.reset();
    if (!keep) return;
    codes = std::make_unique_for_overwrite<std::uint8_t[]>(bytes);
    // Read by the last scan, never used: the rest is written before.
    std::fill_n(codes.get() + rows.size() * coding.bytes(), kScanRows * coding.bytes(), 0);
  }

  // One assign: the centres regrouped and what is known of their movement.
  struct Work {
    CentreTable::Pack all, moved;
    std::vector<double> drift;  // how far each centre moved; infinity the first time
  };

  // One thread's buffers.
  struct Scratch {
    std::vector<std::uint8_t> block, group;
    std::vector<float> values;
    std::vector<double> row;
    std::vector<ScanRow> scan;
    std::vector<Hit> hits, sorted;
    std::vector<std::uint32_t> full, part;
    std::size_t scanned = 0;    // rows compared to all centres
    std::size_t evaluated = 0;  // exact distances that was left to compute for them
  };
  std::vector<Scratch> buffers;  // by thread; kept, as fresh memory is cleared page by page

  std::size_t assign(const double* values);
  bool too_coarse() const;
  void assign_block(std::size_t first_row, std::size_t count, const Work& work, Scratch& scratch);
  void lower_upper_bound(RowState& row, std::int32_t label, const std::uint8_t* code,
                         const Work& work);
  void scan_rows(std::size_t first_row, const std::vector<std::uint32_t>& which,
                 const std::uint8_t* block, bool all, const Work& work, Scratch& scratch);
  void decide(std::size_t id, const ScanRow& scanned, const Hit* hits, std::size_t n_hits, bool all,
              Scratch& scratch);
  void update_chunk(std::size_t begin, std::size_t end, const std::vector<std::int32_t>& before);
  template <typename Visit>
  void each_distance(Visit&& visit) const;
};

std::size_t Assigner::State::assign(const double* values) {
  const std::size_t d = rows.n_cols(), n = rows.size();
  const double reach = reach_of(values, n_clusters, d);
  Work work;
  work.drift.assign(n_clusters, std::numeric_limits<double>::infinity());
  std::vector<std::int32_t> every(n_clusters), moved;
  std::iota(every.begin(), every.end(), 0);
  if (!first) {
    parallel_blocks((n_clusters + 63) / 64, options.n_threads, [&](std::size_t block, int) {
      for (std::size_t j = block * 64; j < std::min(n_clusters, (block + 1) * 64); ++j) {
        const double distance = squared_distance(values + j * d, centers.values() + j * d, d);
        // A square may vanish whose root does not: 2^-520.
        const bool same =
            std::equal(values + j * d, values + (j + 1) * d, centers.values() + j * d);
        work.drift[j] = same ? 0 : std::sqrt(distance) * (1 + kDistanceError) + 0x1p-520;
      }
    });
    for (std::size_t j = 0; j < n_clusters; ++j) {
      if (work.drift[j] > 0) moved.push_back(static_cast<std::int32_t>(j));
    }
  }
  // Centres farther out than any row, which no iteration makes: the start may be anywhere.
  if (reach > coding.reach()) {
    recode(coding.int8(), reach);
    known.assign(n, RowState{});
    fresh = true;
  }
  auto prepare = [&] {
    centers.set(values, coding, options.n_threads);
    work.all = centers.pack(every, options.n_threads);
    work.moved = centers.pack(moved, options.n_threads);
  };
  prepare();

  std::vector<std::int32_t> before(std::min(kChunkRows, n));
  buffers.resize(static_cast<std::size_t>(options.n_threads));
  for (Scratch& one : buffers) one.scanned = one.evaluated = 0;
  std::size_t changed = 0;
  for (std::size_t begin = 0, end = 0; begin < n; begin = end) {
    // Start small: whether the codes are any good is soon known.
    end = std::min(n, begin + (first && begin == 0 ? kTrialRows : kChunkRows));
    std::copy(labels.begin() + static_cast<std::ptrdiff_t>(begin),
              labels.begin() + static_cast<std::ptrdiff_t>(end), before.begin());
    parallel_blocks((end - begin + kBlockRows - 1) / kBlockRows, options.n_threads,
                    [&](std::size_t block, int thread) {
                      const std::size_t from = begin + block * kBlockRows;
                      assign_block(from, std::min(kBlockRows, end - from), work,
                                   buffers[static_cast<std::size_t>(thread)]);
                    });
    for (std::size_t i = begin; i < end; ++i) changed += labels[i] != before[i - begin];
    update_chunk(begin, end, before);
    if (coding.int8() && too_coarse()) {
      recode(false, coding.reach());
      prepare();
    }
  }
  first = fresh = false;
  return changed;
}

// An exact distance takes about 20 times as long as ruling out a centre by float32 codes.
bool Assigner::State::too_coarse() const {
  std::size_t scanned = 0, evaluated = 0;
  for (const Scratch& one : buffers) {
    scanned += one.scanned;
    evaluated += one.evaluated;
  }
  return evaluated > scanned * (2 + n_clusters / 20);
}

void Assigner::State::assign_block(std::size_t first_row, std::size_t count, const Work& work,
                                   Scratch& scratch) {
  const std::size_t bytes = coding.bytes();
  std::uint8_t* block = nullptr;
  if (codes == nullptr) {
    scratch.block.resize((kBlockRows + kScanRows) * bytes);
    block = scratch.block.data();
  } else {
    block = codes.get() + first_row * bytes;
  }
  if (fresh || codes == nullptr) {
    scratch.values.resize(rows.n_cols());
    for (std::size_t i = 0; i < count; ++i) {
      known[first_row + i].code =
          encode_row(coding, rows, first_row + i, scratch.values.data(), block + i * bytes);
    }
  }
  scratch.full.clear();
  scratch.part.clear();
  for (std::size_t i = 0; i < count; ++i) {
    RowState& row = known[first_row + i];
    if (!first) lower_upper_bound(row, labels[first_row + i], block + i * bytes, work);
    // Centres that did not move are all farther than `lower`.
    const bool settled = row.upper < row.lower;
    (settled ? scratch.part : scratch.full).push_back(static_cast<std::uint32_t>(i));
  }
  scan_rows(first_row, scratch.full, block, true, work, scratch);
  if (work.moved.size() > 0) scan_rows(first_row, scratch.part, block, false, work, scratch);
}

// Brings the bound on the own distance up to date: by the triangle inequality, and from the codes
// where that says too little.
void Assigner::State::lower_upper_bound(RowState& row, std::int32_t label, const std::uint8_t* code,
                                        const Work& work) {
  const double drift = work.drift[static_cast<std::size_t>(label)];
  if (drift == 0) return;
  const double square = row.code.square;
  const double reach =
      std::sqrt(std::max(0.0, row.upper + square * (1 + 2 * kSquareError) + kTiny)) +
      drift * coding.unit();
  row.upper = above(reach * reach, row.code);
  if (row.upper >= row.lower && coding.int8()) {
    row.upper = std::min(row.upper, centers.upper(code, row.code, label));
  }
}

// Compares some rows of a block to all centres, or to those that moved.
void Assigner::State::scan_rows(std::size_t first_row, const std::vector<std::uint32_t>& which,
                                const std::uint8_t* block, bool all, const Work& work,
                                Scratch& scratch) {
  const std::size_t bytes = coding.bytes();
  const CentreTable::Pack& pack = all ? work.all : work.moved;
  if (scratch.hits.empty()) {
    scratch.hits.resize(kScanRows * work.all.size());
    scratch.sorted.resize(kScanRows * work.all.size());
    scratch.scan.resize(kScanRows);
    scratch.row.resize(rows.n_cols());
  }
  scratch.group.resize(kScanRows * bytes);  // rows may be coded anew meanwhile
  for (std::size_t begin = 0; begin < which.size(); begin += kScanRows) {
    const std::size_t n = std::min(kScanRows, which.size() - begin);
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t at = which[begin + i];
      const RowState& row = known[first_row + at];
      const float reach = row.upper + row.code.square;
      const float margin = reach < kInfinity ? options.margin * std::max(0.0f, reach) : 0.0f;
      scratch.scan[i] = scan_row(row.code, rows.n_cols(), row.upper, margin, -kInfinity);
    }
    const std::uint8_t* codes_of_group = block + which[begin] * bytes;
    if (which[begin + n - 1] != which[begin] + n - 1) {
      for (std::size_t i = 0; i < n; ++i) {
        std::memcpy(scratch.group.data() + i * bytes, block + which[begin + i] * bytes, bytes);
      }
      codes_of_group = scratch.group.data();
    }
    const std::size_t n_hits =
        scan(coding, codes_of_group, n, pack.view(), scratch.scan.data(), scratch.hits.data());
    std::uint32_t starts[kScanRows + 1];
    group_by_row(scratch.hits.data(), n_hits, n, scratch.sorted.data(), starts);
    for (std::size_t i = 0; i < n; ++i) {
      decide(first_row + which[begin + i], scratch.scan[i], scratch.sorted.data() + starts[i],
             starts[i + 1] - starts[i], all, scratch);
    }
    if (all) scratch.scanned += n;
  }
}

// The label of one row, from the centres that a scan could not rule out.
void Assigner::State::decide(std::size_t id, const ScanRow& scanned, const Hit* hits,
                             std::size_t n_hits, bool all, Scratch& scratch) {
  RowState& row = known[id];
  const std::int32_t own = labels[id];
  const double square_unit = coding.unit() * coding.unit();
  // What was not reported is farther than this; of what was not scanned, row.lower knows.
  float lower = round_down(static_cast<double>(scanned.best) + scanned.margin);
  if (!all) lower = std::min(lower, row.lower);
  std::int32_t winner = all ? -1 : own;  // a scan of moved centres need not have met the own one
  bool single = true;
  float own_lower = kInfinity;
  for (std::size_t h = 0; h < n_hits; ++h) {
    const Hit& hit = hits[h];
    if (hit.lower > scanned.best) {
      float& bound = hit.centre == own ? own_lower : lower;
      bound = std::min(bound, hit.lower);
    } else if (hit.centre != winner) {
      single = single && winner < 0;
      winner = hit.centre;
    }
  }
  if (single) {
    if (winner != own) lower = std::min(lower, own_lower);
    row.upper = scanned.best;
  } else {
    rows.load(id, scratch.row.data());
    double nearest = std::numeric_limits<double>::infinity(), second = nearest;
    winner = -1;
    auto meet = [&](std::int32_t centre) {
      const double distance = centers.squared_distance_to(scratch.row.data(), centre);
      if (distance < nearest || (distance == nearest && centre < winner)) {
        second = nearest;
        nearest = distance;
        winner = centre;
      } else {
        second = std::min(second, distance);
      }
      scratch.evaluated += all;
    };
    if (own >= 0) meet(own);
    for (std::size_t h = 0; h < n_hits; ++h) {
      const Hit& hit = hits[h];
      if (hit.centre == own || hit.lower > scanned.best) continue;
      if (hit.lower > above(nearest * square_unit, row.code)) {
        lower = std::min(lower, hit.lower);
      } else {
        meet(hit.centre);
      }
    }
    row.upper = above(nearest * square_unit, row.code);
    lower = std::min(lower, below(second * square_unit, row.code));
  }
  if (winner < 0) {
    throw std::invalid_argument("row " + std::to_string(id) +
                                " has no nearest centre: does the scale hold for its values?");
  }
  row.lower = lower;
  labels[id] = winner;
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
      if (m + 1 < starts[cluster + 1]) rows.prefetch(moves[m + 1].row);
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

// visit(row, squared distance to the own centre), from several threads.
template <typename Visit>
void Assigner::State::each_distance(Visit&& visit) const {
  parallel_blocks((rows.size() + kBlockRows - 1) / kBlockRows, options.n_threads,
                  [&](std::size_t block, int thread) {
                    std::vector<double> row(rows.n_cols());
                    const std::size_t first = block * kBlockRows;
                    for (std::size_t i = first; i < std::min(rows.size(), first + kBlockRows);
                         ++i) {
                      rows.load(i, row.data());
                      visit(i, centers.squared_distance_to(row.data(), labels[i]), thread);
                    }
                  });
}

Assigner::Assigner(Rows rows, std::vector<double> weights, FixedScale scale, std::size_t n_clusters,
                   LloydOptions options)
    : state_(std::make_unique<State>(std::move(rows), std::move(weights), std::move(scale),
                                     n_clusters, options)) {}

Assigner::~Assigner() = default;

std::size_t Assigner::assign(const double* centers) { return state_->assign(centers); }

const std::vector<std::int32_t>& Assigner::labels() const { return state_->labels; }
const std::vector<std::int64_t>& Assigner::sums() const { return state_->sums; }
const std::vector<std::int64_t>& Assigner::mass() const { return state_->mass; }

__int128 Assigner::inertia(int shift) const {
  std::vector<__int128> partial(static_cast<std::size_t>(state_->options.n_threads));
  state_->each_distance([&](std::size_t i, double distance, int thread) {
    const double weight = state_->weights.empty() ? 1.0 : state_->weights[i];
    partial[static_cast<std::size_t>(thread)] +=
        static_cast<__int128>(std::ldexp(weight * distance, shift));
  });
  return std::accumulate(partial.begin(), partial.end(), __int128{0});
}

std::vector<FarRow> Assigner::farthest(std::size_t count) const {
  std::vector<FarRow> far(state_->rows.size());
  state_->each_distance([&](std::size_t i, double distance, int) { far[i] = {distance, i}; });
  if (!state_->weights.empty()) {
    std::erase_if(far, [&](const FarRow& row) {
      return state_->weights[row.row] * state_->scale.mass <= 0.5;  // rounds to no mass
    });
  }
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
  std::vector<double> units;  // powers of two: a product is as exact as the quotient, and faster
  for (double column : scale.columns) units.push_back(1 / column);
  for (std::size_t j = 0; j < n_clusters; ++j) {
    if (mass[j] <= 0) continue;
    double* center = centers + j * d;
    const std::vector<double> before(center, center + d);
    const double weight = static_cast<double>(mass[j]) / scale.mass;
    for (std::size_t t = 0; t < d; ++t) {
      center[t] = static_cast<double>(sums[j * d + t]) * units[t] / weight;
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
