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
#include <utility>

#include "pyids/codes.hpp"
#include "pyids/distance.hpp"
#include "pyids/parallel.hpp"
#include "pyids/simd.hpp"

namespace pyids {

namespace {

constexpr std::size_t kBlockRows = 256;   // rows that one thread handles at a time
constexpr std::size_t kTrialRows = 4096;  // rows of the very first chunk
constexpr std::size_t kPanelGroups = 64;  // groups of 16 centres scanned at a time
constexpr std::size_t kMostHits = 65536;  // that are kept between two panels
constexpr std::size_t kCrowd = 512;       // hits of one row, beyond which they are not kept
// Of the largest weight, which is held as 1 to 2: rows below it take no empty cluster.
constexpr double kLightest = 0x1p-51;
constexpr std::size_t kBytesAThread = 3 << 20;
constexpr std::size_t kLeastMemory = 16 << 20;  // of all threads
constexpr std::size_t kChunkRows = 65536;  // rows assigned before their sums are brought up to date

// What is known of a row between one assignment and the next. Squared distances are less |x|^2.
struct RowState {
  RowCode code = {};
  float upper = kInfinity;   // squared distance to the own centre, at most
  float lower = -kInfinity;  // squared distance to any other centre, at least
};

// The nearest of some centres, ties to the lowest index, and the next distance.
struct Nearest {
  std::int32_t centre = -1;
  double distance = std::numeric_limits<double>::infinity();
  double second = std::numeric_limits<double>::infinity();

  void meet(std::int32_t other, double its) {
    if (its < distance || (its == distance && other < centre)) {
      second = distance;
      distance = its;
      centre = other;
    } else {
      second = std::min(second, its);
    }
  }
};

[[noreturn]] void refuse_row(std::size_t id) {
  throw std::invalid_argument("row " + std::to_string(id) +
                              " has no nearest centre: does the scale hold for its values?");
}

}  // namespace

struct Assigner::State {
  Rows rows;
  RowWeights weights;
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
  bool first = true;    // no assign yet
  bool broken = false;  // the last assign did not end
  bool fresh = true;    // the rows are not coded yet

  State(Rows r, RowWeights w, FixedScale s, std::size_t k, LloydOptions o)
      : rows(std::move(r)),
        weights(std::move(w)),
        scale(std::move(s)),
        n_clusters(k),
        options(o),
        coding(rows, Coding::int8_pays(rows.n_cols()), scale.reach),
        labels(rows.size(), -1),
        known(rows.size()),
        sums(scale.n_planes() * k * rows.n_cols()),
        mass(scale.n_planes() * k),
        centers(k, rows.n_cols()) {
    make_room();
    const std::size_t fixed = rows.size() * sizeof(RowState);
    const std::size_t left = options.max_memory_bytes - std::min(options.max_memory_bytes, fixed);
    const std::size_t each = kBytesAThread + (kBlockRows + 2 * kScanRows) * coding.bytes();
    const std::size_t fit = std::max<std::size_t>(1, std::max(kLeastMemory, left) / each);
    options.n_threads = static_cast<int>(
        std::min<std::size_t>(fit, static_cast<std::size_t>(std::max(1, options.n_threads))));
  }

  // As before the first assign.
  void forget() {
    first = fresh = true;
    std::fill(labels.begin(), labels.end(), -1);
    known.assign(rows.size(), RowState{});
    std::fill(sums.begin(), sums.end(), 0);
    std::fill(mass.begin(), mass.end(), 0);
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
  std::size_t scan_panels(const std::uint8_t* codes, std::size_t n, const CentreTable::Pack& pack,
                          Scratch& scratch);
  std::size_t drop_hits(std::size_t n_hits, std::size_t n, Scratch& scratch);
  double distance_to(std::int32_t centre, const Scratch& scratch) const {
    return centers.squared_distance_to(scratch.row.data(), centre);
  }
  void decide_crowded(std::size_t id, const CentreTable::Pack& pack, bool all, Scratch& scratch);
  void decide(std::size_t id, const ScanRow& scanned, const Hit* hits, std::size_t n_hits, bool all,
              Scratch& scratch);
  void update_chunk(std::size_t begin, std::size_t end, const std::vector<std::int32_t>& before);
  template <typename Visit>
  void each_distance(Visit&& visit) const;
};

std::size_t Assigner::State::assign(const double* values) {
  const std::size_t d = rows.n_cols(), n = rows.size();
  const double reach = largest_center_value(values, n_clusters, d);
  if (std::exchange(broken, true)) forget();
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
  first = fresh = broken = false;
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
  scratch.scan.resize(kScanRows);
  scratch.row.resize(rows.n_cols());
  scratch.group.resize(kScanRows * bytes);  // rows may be coded anew meanwhile
  for (std::size_t begin = 0; begin < which.size(); begin += kScanRows) {
    const std::size_t n = std::min(kScanRows, which.size() - begin);
    for (std::size_t i = 0; i < n; ++i) {
      const RowState& row = known[first_row + which[begin + i]];
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
    const std::size_t n_hits = scan_panels(codes_of_group, n, pack, scratch);
    std::uint32_t starts[kScanRows + 1];
    scratch.sorted.resize(std::max(scratch.sorted.size(), n_hits));
    group_by_row(scratch.hits.data(), n_hits, n, scratch.sorted.data(), starts);
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t id = first_row + which[begin + i];
      if (scratch.scan[i].best == -kInfinity) {
        decide_crowded(id, pack, all, scratch);
      } else {
        decide(id, scratch.scan[i], scratch.sorted.data() + starts[i], starts[i + 1] - starts[i],
               all, scratch);
      }
    }
    if (all) scratch.scanned += n;
  }
}

// Scans all centres of a pack, some at a time, so that what is reported takes bounded memory: what
// turns out to be too far is dropped, and a row that too many centres may be nearest to is marked
// by best = -infinity. Returns the number of hits.
std::size_t Assigner::State::scan_panels(const std::uint8_t* codes, std::size_t n,
                                         const CentreTable::Pack& pack, Scratch& scratch) {
  const std::size_t n_groups = pack.size() / 16;
  scratch.hits.resize(kScanRows * 16 * std::min(n_groups, kPanelGroups) +
                      std::min(kMostHits, kScanRows * pack.size()));
  std::size_t n_hits = 0;
  for (std::size_t group = 0; group < n_groups; group += kPanelGroups) {
    check_interrupt();
    n_hits += scan(coding, codes, n, pack.view(group, std::min(kPanelGroups, n_groups - group)),
                   scratch.scan.data(), scratch.hits.data() + n_hits);
    if (n_hits > kMostHits || group + kPanelGroups >= n_groups) {
      n_hits = drop_hits(n_hits, n, scratch);
    }
  }
  return n_hits;
}

std::size_t Assigner::State::drop_hits(std::size_t n_hits, std::size_t n, Scratch& scratch) {
  auto too_far = [&](const Hit& hit) {
    const ScanRow& row = scratch.scan[hit.row];
    return row.best == -kInfinity || hit.lower > row.best + row.margin;
  };
  auto begin = scratch.hits.begin();
  auto end = std::remove_if(begin, begin + static_cast<std::ptrdiff_t>(n_hits), too_far);
  if (static_cast<std::size_t>(end - begin) <= kMostHits / 2) {
    return static_cast<std::size_t>(end - begin);
  }
  std::vector<std::size_t> counts(n);
  for (auto at = begin; at != end; ++at) ++counts[at->row];
  for (std::size_t i = 0; i < n; ++i) {
    if (counts[i] > kCrowd) scratch.scan[i].best = -kInfinity;
  }
  return static_cast<std::size_t>(std::remove_if(begin, end, too_far) - begin);
}

// The label of a row, by its exact distances to all centres of a pack and to its own.
void Assigner::State::decide_crowded(std::size_t id, const CentreTable::Pack& pack, bool all,
                                     Scratch& scratch) {
  RowState& row = known[id];
  const double square_unit = coding.unit() * coding.unit();
  rows.load(id, scratch.row.data());
  Nearest found;
  if (labels[id] >= 0) found.meet(labels[id], distance_to(labels[id], scratch));
  for (std::int32_t centre : pack.centres()) {
    if (centre % 256 == 0) check_interrupt();
    if (centre != labels[id]) found.meet(centre, distance_to(centre, scratch));
  }
  scratch.evaluated += all ? pack.size() : 0;
  if (found.centre < 0) refuse_row(id);
  const float lower = below(found.second * square_unit, row.code);
  row.lower = all ? lower : std::min(lower, row.lower);
  row.upper = above(found.distance * square_unit, row.code);
  labels[id] = found.centre;
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
    Nearest found;
    auto meet = [&](std::int32_t centre) {
      found.meet(centre, distance_to(centre, scratch));
      scratch.evaluated += all;
    };
    if (own >= 0) meet(own);
    for (std::size_t h = 0; h < n_hits; ++h) {
      const Hit& hit = hits[h];
      if (hit.centre == own || hit.lower > scanned.best) continue;
      if (hit.lower > above(found.distance * square_unit, row.code)) {
        lower = std::min(lower, hit.lower);
      } else {
        meet(hit.centre);
      }
    }
    winner = found.centre;
    row.upper = above(found.distance * square_unit, row.code);
    lower = std::min(lower, below(found.second * square_unit, row.code));
  }
  if (winner < 0) refuse_row(id);
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
      const std::size_t i = moves[m].row;
      if (m + 1 < starts[cluster + 1]) rows.prefetch(moves[m + 1].row);
      rows.load(i, row.data());
      const bool classes = !weights.classes.empty();
      const double weight = classes                ? weights.in_class[i]
                            : weights.held.empty() ? 1.0
                                                   : weights.held[i];
      scale.add(row.data(), weight, classes ? weights.classes[i] : 0, moves[m].sign, cluster,
                n_clusters, sums.data(), mass.data());
    }
  });
}

// visit(row, squared distance to the own centre), from several threads.
template <typename Visit>
void Assigner::State::each_distance(Visit&& visit) const {
  if (first || broken) throw std::logic_error("no rows are assigned: call assign first");
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

Assigner::Assigner(Rows rows, RowWeights weights, FixedScale scale, std::size_t n_clusters,
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
    const double weight = state_->weights.held.empty() ? 1.0 : state_->weights.held[i];
    partial[static_cast<std::size_t>(thread)] +=
        static_cast<__int128>(std::ldexp(weight * distance, shift));
  });
  return std::accumulate(partial.begin(), partial.end(), __int128{0});
}

std::vector<FarRow> Assigner::farthest(std::size_t count) const {
  const auto farther = [](const FarRow& a, const FarRow& b) {
    return a.squared_distance > b.squared_distance ||
           (a.squared_distance == b.squared_distance && a.row < b.row);
  };
  count = std::min(count, state_->rows.size());
  auto keep = [&](std::vector<FarRow>& some) {
    const std::size_t kept = std::min(count, some.size());
    std::partial_sort(some.begin(), some.begin() + static_cast<std::ptrdiff_t>(kept), some.end(),
                      farther);
    some.resize(kept);
  };
  const std::vector<double>& weights = state_->weights.held;
  std::vector<std::vector<FarRow>> partial(static_cast<std::size_t>(state_->options.n_threads));
  state_->each_distance([&](std::size_t i, double distance, int thread) {
    if (!weights.empty() && weights[i] <= kLightest) return;
    auto& mine = partial[static_cast<std::size_t>(thread)];
    mine.push_back({distance, i});
    if (mine.size() > 4 * count + 4096) keep(mine);
  });
  std::vector<FarRow> far;
  for (const auto& some : partial) far.insert(far.end(), some.begin(), some.end());
  keep(far);
  return far;
}

}  // namespace pyids
