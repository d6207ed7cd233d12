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

#include "pyids/distance.hpp"
#include "pyids/parallel.hpp"
#include "pyids/simd.hpp"

namespace pyids {

namespace {

constexpr std::size_t kBlockRows = 256;    // rows that one thread handles at a time
constexpr std::size_t kChunkRows = 65536;  // rows assigned before their sums are brought up to date
constexpr double kRounding = 0x1p-20;      // covers a handful of float32 operations
constexpr float kInfinity = std::numeric_limits<float>::infinity();

float round_up(double v) { return std::nextafter(static_cast<float>(v), kInfinity); }
float round_down(double v) { return std::nextafter(static_cast<float>(v), -kInfinity); }

std::size_t round_up_to(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
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

// ---- the centres as scans see them ---------------------------------------------------------------

namespace {

// Codes of all centres, and the same regrouped by 16 for all or some of them.
class CentreTable {
 public:
  CentreTable(std::size_t n, std::size_t d) : n_(n), d_(d) {}

  // The pack that a scan walks through.
  struct Pack {
    std::vector<std::int8_t> bytes;
    std::vector<float> floats;
    std::vector<std::int32_t> correction, index;
    std::vector<float> offset, scale, code, rest;

    CentreCodes view() const {
      const void* packed = floats.empty() ? static_cast<const void*>(bytes.data()) : floats.data();
      return {packed,      correction.data(), offset.data(), scale.data(),
              code.data(), rest.data(),       index.data(),  index.size() / 16};
    }
  };

  bool int8 = false;
  std::vector<double> exact;
  std::vector<float> narrow;  // the same, empty unless float32 holds them all
  std::vector<float> shifted;
  std::vector<std::int8_t> codes;
  std::vector<CodeInfo> info;
  std::vector<double> length;  // of the shifted centre, rounded up

  void set(const double* centers, const std::vector<float>& shift, bool use_int8, int n_threads);
  Pack pack(const std::vector<std::int32_t>& which, int n_threads) const;

  std::size_t padded() const { return round_up_to(d_, kCodeAlignment); }
  double squared_distance_to(const double* row, std::int32_t j) const {
    const std::size_t at = static_cast<std::size_t>(j) * d_;
    return narrow.empty() ? kernels().squared_distance(row, exact.data() + at, d_)
                          : kernels().squared_distance_f32(row, narrow.data() + at, d_);
  }

  // Bound of one product, as in a scan (see simd.hpp), for the row's own centre.
  float upper(const std::uint8_t* row, const CodeInfo& row_info, std::int32_t j) const {
    const auto at = static_cast<std::size_t>(j);
    const std::int8_t* centre = codes.data() + at * padded();
    const double dot =
        static_cast<double>(kernels().dot_i8(row, centre, padded()) + correction[at]) *
        row_info.unit * info[at].unit;
    const double slack = static_cast<double>(row_info.length) * info[at].rest +
                         static_cast<double>(row_info.rest) * length[at];
    const double square = length[at] * length[at];
    return round_up(square - 2 * (dot - slack) + kRounding * (square + std::fabs(dot)));
  }

  std::vector<std::int32_t> correction;

 private:
  std::size_t n_, d_;
};

void CentreTable::set(const double* centers, const std::vector<float>& shift, bool use_int8,
                      int n_threads) {
  int8 = use_int8;
  exact.assign(centers, centers + n_ * d_);
  narrow.resize(n_ * d_);
  shifted.resize(n_ * d_);
  info.resize(n_);
  length.resize(n_);
  correction.resize(n_);
  if (int8) codes.resize(n_ * padded());
  std::atomic<bool> fits{true};
  parallel_blocks((n_ + 31) / 32, n_threads, [&](std::size_t block, int) {
    std::vector<std::uint8_t> code(padded());
    for (std::size_t j = block * 32; j < std::min(n_, block * 32 + 32); ++j) {
      const double* from = centers + j * d_;
      bool same = true;
      for (std::size_t t = 0; t < d_; ++t) {
        narrow[j * d_ + t] = static_cast<float>(from[t]);
        same &= static_cast<double>(narrow[j * d_ + t]) == from[t];
      }
      if (!same) fits = false;
      float* to = shifted.data() + j * d_;
      kernels().center(from, Scalar::f64, d_, 1.0, shift.data(), to);
      // 2^-18: float32 sums of up to 2^16 squares; what the subtraction rounded.
      length[j] = std::sqrt(kernels().square_f32(to, d_)) * (1 + 0x1p-18);
      if (!int8) {
        info[j] = {1.0f, round_up(length[j]), round_up(length[j] * dot_error(d_))};
        continue;
      }
      info[j] = kernels().encode(to, d_, padded(), 127, 128, code.data());
      std::int32_t sum = 0;
      for (std::size_t t = 0; t < padded(); ++t) {
        codes[j * padded() + t] = static_cast<std::int8_t>(code[t] - 128);
        sum += codes[j * padded() + t];
      }
      correction[j] = -(kernels().row_levels + 1) * sum;
      info[j].rest = round_up(info[j].rest + kRounding * info[j].length);
    }
  });
  if (!fits) narrow.clear();
}

CentreTable::Pack CentreTable::pack(const std::vector<std::int32_t>& which, int n_threads) const {
  Pack pack;
  const std::size_t n = round_up_to(which.size(), 16);
  // Padding can never win.
  pack.offset.assign(n, kInfinity);
  pack.scale.assign(n, 0.0f);
  pack.code.assign(n, 0.0f);
  pack.rest.assign(n, 0.0f);
  pack.index.assign(n, -1);
  pack.correction.assign(n, 0);
  if (int8) {
    pack.bytes.assign(n * padded(), 0);
  } else {
    pack.floats.assign(n * d_, 0.0f);
  }
  parallel_blocks(n / 16, n_threads, [&](std::size_t group, int) {
    for (std::size_t lane = 0; lane < std::min<std::size_t>(16, which.size() - 16 * group); ++lane) {
      const std::size_t to = 16 * group + lane;
      const auto j = static_cast<std::size_t>(which[to]);
      pack.index[to] = which[to];
      pack.correction[to] = correction[j];
      // Twice 2^-18 down from the rounded-up square: below the true one.
      pack.offset[to] = round_down(length[j] * length[j] * (1 - 0x1p-16));
      pack.scale[to] = 2 * info[j].unit;
      pack.code[to] = 2 * info[j].rest;
      pack.rest[to] = round_up(2 * length[j]);
      if (int8) {
        const std::int8_t* from = codes.data() + j * padded();
        std::int8_t* base = pack.bytes.data() + 16 * group * padded() + 4 * lane;
        for (std::size_t t = 0; t < padded(); t += 4) std::memcpy(base + 16 * t, from + t, 4);
      } else {
        const float* from = shifted.data() + j * d_;
        float* base = pack.floats.data() + 16 * group * d_ + lane;
        for (std::size_t t = 0; t < d_; ++t) base[16 * t] = from[t];
      }
    }
  });
  return pack;
}

// What is known of a row between one assignment and the next. Squared distances are less |x|^2.
struct RowState {
  CodeInfo info;
  float square;  // |x|^2 of the shifted row, within 2^-18
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

  std::vector<std::int32_t> labels;
  std::vector<RowState> known;
  std::vector<std::uint8_t> codes;  // of all rows, where there is room for them
  std::vector<std::int64_t> sums, mass;
  std::vector<float> shift;  // subtracted before anything is coded
  CentreTable centers;
  std::vector<double> previous;  // the centres of the last assign
  bool int8;

  State(Rows r, std::vector<double> w, FixedScale s, std::size_t k, LloydOptions o)
      : rows(std::move(r)),
        weights(std::move(w)),
        scale(std::move(s)),
        n_clusters(k),
        options(o),
        labels(rows.size(), -1),
        known(rows.size()),
        sums(k * rows.n_cols()),
        mass(k),
        centers(k, rows.n_cols()),
        int8(kernels().scan_i8 != nullptr) {
    choose_shift();
    const std::size_t bytes = rows.size() * centers.padded();
    if (int8 && options.keep_codes && bytes <= options.max_memory_bytes) codes.resize(bytes);
  }

  void choose_shift();
  struct Scratch;
  struct Work;  // one assign: packs of centres and what moved
  std::size_t assign(const double* values);
  void encode_rows(std::size_t first, std::size_t count, Scratch& scratch);
  void assign_block(std::size_t first, std::size_t count, const Work& work, Scratch& scratch);
  void scan_rows(std::size_t first, const std::vector<std::uint32_t>& which, bool all,
                 const Work& work, Scratch& scratch);
  void update_chunk(std::size_t begin, std::size_t end, const std::vector<std::int32_t>& before);
  template <typename Visit>
  void each_distance(Visit&& visit) const;
};

// About the mean, from a spread-out thousand of rows: any point does, a near one bounds better.
void Assigner::State::choose_shift() {
  const std::size_t d = rows.n_cols();
  const std::size_t step = std::max<std::size_t>(1, rows.size() / 1024);
  std::vector<double> row(d), mean(d);
  std::size_t count = 0;
  for (std::size_t i = 0; i < rows.size(); i += step, ++count) {
    rows.load(i, row.data());
    for (std::size_t t = 0; t < d; ++t) mean[t] += row[t];
  }
  for (double v : mean) {
    shift.push_back(static_cast<float>(v / static_cast<double>(std::max<std::size_t>(1, count))));
  }
}

struct Assigner::State::Work {
  CentreTable::Pack all, moved;
  std::vector<double> drift;  // how far each centre moved; infinity the first time
  bool subset = false;        // whether `moved` is worth a scan of its own
};

struct Assigner::State::Scratch {
  std::vector<std::uint8_t> block_codes, group_codes;
  std::vector<float> block_floats, group_floats;
  std::vector<double> row;
  std::vector<ScanRow> scan;
  std::vector<Hit> hits, sorted;
  std::vector<std::uint32_t> full, part;
  std::size_t evaluated = 0;  // exact distances that a full scan left to compute
  std::size_t scanned = 0;
};

void Assigner::State::encode_rows(std::size_t first, std::size_t count, Scratch& scratch) {
  const std::size_t d = rows.n_cols(), padded = centers.padded();
  scratch.block_floats.resize(count * d);
  scratch.block_codes.resize(int8 && codes.empty() ? count * padded : 0);
  for (std::size_t i = 0; i < count; ++i) {
    RowState& row = known[first + i];
    float* to = scratch.block_floats.data() + (int8 ? 0 : i * d);
    rows.load_centered(first + i, shift.data(), to);
    row.square = static_cast<float>(kernels().square_f32(to, d));
    if (int8) {
      std::uint8_t* code = codes.empty() ? scratch.block_codes.data() + i * padded
                                         : codes.data() + (first + i) * padded;
      row.info = kernels().encode(to, d, padded, kernels().row_levels, kernels().row_levels + 1,
                                  code);
    } else {
      const float length = round_up(std::sqrt(row.square) * (1 + 0x1p-18));
      row.info = {1.0f, length, length * 0x1p-23f};
    }
  }
}

void Assigner::State::assign_block(std::size_t first, std::size_t count, const Work& work,
                                   Scratch& scratch) {
  if (codes.empty() || !int8 || labels[first] < 0) encode_rows(first, count, scratch);
  const std::uint8_t* block_codes =
      codes.empty() ? scratch.block_codes.data() : codes.data() + first * centers.padded();
  scratch.full.clear();
  scratch.part.clear();
  for (std::size_t i = 0; i < count; ++i) {
    RowState& row = known[first + i];
    const std::int32_t label = labels[first + i];
    if (label >= 0 && work.drift[static_cast<std::size_t>(label)] > 0) {
      // The triangle inequality first; a fresh bound where that does not do.
      const double drift = work.drift[static_cast<std::size_t>(label)];
      const double square = row.square;
      const double reach =
          std::sqrt(std::max(0.0, row.upper + square * (1 + 0x1p-17))) + drift;
      row.upper = round_up(reach * reach - square * (1 - 0x1p-17));
      if (row.upper >= row.lower && int8) {
        row.upper = std::min(row.upper, centers.upper(block_codes + i * centers.padded(), row.info,
                                                      label));
      }
    }
    const bool safe = work.subset && row.upper < row.lower;
    (safe ? scratch.part : scratch.full).push_back(static_cast<std::uint32_t>(i));
  }
  scan_rows(first, scratch.full, true, work, scratch);
  if (work.moved.index.size() > 0) scan_rows(first, scratch.part, false, work, scratch);
}

void Assigner::State::scan_rows(std::size_t first, const std::vector<std::uint32_t>& which, bool all,
                                const Work& work, Scratch& scratch) {
  const std::size_t d = rows.n_cols(), padded = centers.padded();
  const CentreTable::Pack& pack = all ? work.all : work.moved;
  const std::uint8_t* block_codes =
      codes.empty() ? scratch.block_codes.data() : codes.data() + first * padded;
  scratch.scan.resize(kScanRows);
  if (scratch.hits.empty()) {
    scratch.hits.resize(kScanRows * work.all.index.size());
    scratch.sorted.resize(kScanRows * work.all.index.size());
  }
  scratch.row.resize(d);
  for (std::size_t begin = 0; begin < which.size(); begin += kScanRows) {
    const std::size_t n = std::min(kScanRows, which.size() - begin);
    if (int8) {
      scratch.group_codes.resize(kScanRows * padded);
    } else {
      scratch.group_floats.resize(kScanRows * d);
    }
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t at = which[begin + i];
      const RowState& row = known[first + at];
      if (int8) {
        std::memcpy(scratch.group_codes.data() + i * padded, block_codes + at * padded, padded);
      } else {
        std::memcpy(scratch.group_floats.data() + i * d, scratch.block_floats.data() + at * d,
                    d * sizeof(float));
      }
      const float reach = row.upper + row.square;
      scratch.scan[i] = {row.info.unit, row.info.length, row.info.rest, row.upper,
                         reach < kInfinity ? options.margin * std::max(0.0f, reach) : 0.0f};
    }
    const std::size_t n_hits =
        int8 ? kernels().scan_i8(scratch.group_codes.data(), padded, n, pack.view(),
                                 scratch.scan.data(), scratch.hits.data())
             : kernels().scan_f32(scratch.group_floats.data(), d, n, pack.view(),
                                  scratch.scan.data(), scratch.hits.data());
    // Group the hits by row, keeping their order.
    std::uint32_t starts[kScanRows + 1] = {};
    for (std::size_t h = 0; h < n_hits; ++h) ++starts[scratch.hits[h].row + 1];
    for (std::size_t i = 0; i < n; ++i) starts[i + 1] += starts[i];
    std::uint32_t next[kScanRows];
    std::copy(starts, starts + n, next);
    for (std::size_t h = 0; h < n_hits; ++h) {
      scratch.sorted[next[scratch.hits[h].row]++] = scratch.hits[h];
    }
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t id = first + which[begin + i];
      RowState& row = known[id];
      const std::int32_t own = labels[id];
      const float best = scratch.scan[i].best;
      // What was not reported is farther than this; of what was not scanned, `lower` knows.
      float lower = round_down(static_cast<double>(best) + scratch.scan[i].margin);
      if (!all) lower = std::min(lower, row.lower);
      std::int32_t winner = -1;
      bool single = true;
      const Hit* hits = scratch.sorted.data();
      for (std::size_t h = starts[i]; h < starts[i + 1]; ++h) {
        if (hits[h].lower > best) {
          if (hits[h].centre != own) lower = std::min(lower, hits[h].lower);
        } else {
          single = single && winner < 0;
          winner = hits[h].centre;
        }
      }
      // In a scan of the moved centres the own one may not have been among them.
      if (!all && winner != own) {
        if (winner < 0) {
          winner = own;
        } else {
          single = false;
        }
      }
      if (single) {
        row.upper = best;
      } else {
        rows.load(id, scratch.row.data());
        double nearest = std::numeric_limits<double>::infinity(), second = nearest;
        winner = -1;
        const double square = row.square, blur = square * 0x1p-17;
        auto meet = [&](std::int32_t centre) {
          const double distance = centers.squared_distance_to(scratch.row.data(), centre);
          ++scratch.evaluated;
          if (distance < nearest || (distance == nearest && centre < winner)) {
            second = nearest;
            nearest = distance;
            winner = centre;
          } else {
            second = std::min(second, distance);
          }
        };
        if (own >= 0) meet(own);
        for (std::size_t h = starts[i]; h < starts[i + 1]; ++h) {
          if (hits[h].centre == own || hits[h].lower > best) continue;
          if (hits[h].lower > nearest - square + blur) {
            lower = std::min(lower, hits[h].lower);
          } else {
            meet(hits[h].centre);
          }
        }
        row.upper = round_up(nearest - square + blur + nearest * 0x1p-40);
        lower = std::min(lower, round_down(second - square - blur - second * 0x1p-40));
      }
      row.lower = lower;
      labels[id] = winner;
    }
    scratch.scanned += all ? n : 0;
  }
}

std::size_t Assigner::State::assign(const double* values) {
  const std::size_t d = rows.n_cols(), n = rows.size();
  Work work;
  work.drift.assign(n_clusters, std::numeric_limits<double>::infinity());
  std::vector<std::int32_t> every(n_clusters), moved;
  std::iota(every.begin(), every.end(), 0);
  if (!previous.empty()) {
    for (std::size_t j = 0; j < n_clusters; ++j) {
      const double distance =
          squared_distance(values + j * d, previous.data() + j * d, d);
      work.drift[j] = std::sqrt(distance) * (1 + 0x1p-40);
      if (distance > 0) moved.push_back(static_cast<std::int32_t>(j));
    }
  }
  centers.set(values, shift, int8, options.n_threads);
  work.all = centers.pack(every, options.n_threads);
  work.subset = !previous.empty();
  if (work.subset) work.moved = centers.pack(moved, options.n_threads);
  previous.assign(values, values + n_clusters * d);

  std::vector<std::int32_t> before(std::min(kChunkRows, n));
  std::vector<Scratch> scratch(static_cast<std::size_t>(options.n_threads));
  std::size_t changed = 0;
  for (std::size_t begin = 0; begin < n; begin += kChunkRows) {
    const std::size_t end = std::min(begin + kChunkRows, n);
    std::copy(labels.begin() + static_cast<std::ptrdiff_t>(begin),
              labels.begin() + static_cast<std::ptrdiff_t>(end), before.begin());
    parallel_blocks((end - begin + kBlockRows - 1) / kBlockRows, options.n_threads,
                    [&](std::size_t block, int thread) {
                      const std::size_t first = begin + block * kBlockRows;
                      assign_block(first, std::min(kBlockRows, end - first), work,
                                   scratch[static_cast<std::size_t>(thread)]);
                    });
    for (std::size_t i = begin; i < end; ++i) changed += labels[i] != before[i - begin];
    update_chunk(begin, end, before);
  }
  if (std::getenv("PYIDS_DEBUG")) {
    std::size_t e = 0, s = 0;
    for (auto& one : scratch) e += one.evaluated, s += one.scanned;
    std::fprintf(stderr, "moved %zu full %zu evaluated %zu changed %zu\n", moved.size(), s, e,
                 changed);
  }
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

// visit(row, squared distance to the own centre), from several threads.
template <typename Visit>
void Assigner::State::each_distance(Visit&& visit) const {
  parallel_blocks((rows.size() + kBlockRows - 1) / kBlockRows, options.n_threads,
                  [&](std::size_t block, int thread) {
                    std::vector<double> row(rows.n_cols());
                    const std::size_t first = block * kBlockRows;
                    for (std::size_t i = first; i < std::min(rows.size(), first + kBlockRows); ++i) {
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
