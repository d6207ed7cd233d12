// What an Assigner holds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "pyids/codes.hpp"
#include "pyids/kmeans.hpp"
#include "pyids/parallel.hpp"
#include "pyids/prefix.hpp"

namespace pyids {

inline constexpr std::size_t kBlockRows = 256;   // rows that one thread handles at a time
inline constexpr std::size_t kTrialRows = 4096;  // rows of the very first chunk
inline constexpr std::size_t kPanelGroups = 64;  // groups of 16 centers scanned at a time
inline constexpr std::size_t kMostHits = 65536;  // that are kept between two panels
inline constexpr std::size_t kCrowd = 512;       // hits of one row, beyond which they are not kept
// Of the largest weight, which is held as 1 to 2: rows below it take no empty cluster.
inline constexpr double kLightest = 0x1p-51;
inline constexpr std::size_t kPairsForAxes = 1 << 23;  // of rows and centers, an assignment
inline constexpr std::size_t kBytesAThread = 3 << 20;
inline constexpr std::size_t kLeastMemory = 16 << 20;  // of all threads
inline constexpr std::size_t kChunkRows =
    65536;  // rows assigned before their sums are brought up to date

// What is known of a row between one assignment and the next. Squared distances are less |x|^2.
struct RowState {
  RowCode code = {};
  float upper = kInfinity;   // squared distance to the own center, at most
  float lower = -kInfinity;  // squared distance to any other center, at least
};

// The nearest of some centers, ties to the lowest index, and the next distance.
struct Nearest {
  std::int32_t center = -1;
  double distance = std::numeric_limits<double>::infinity();
  double second = std::numeric_limits<double>::infinity();

  void meet(std::int32_t other, double its) {
    if (its < distance || (its == distance && other < center)) {
      second = distance;
      distance = its;
      center = other;
    } else {
      second = std::min(second, its);
    }
  }
};

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
  // The same along principal axes, where that pays.
  std::optional<PrincipalAxes> axes;
  std::unique_ptr<std::uint8_t[]> prefixes;
  std::vector<PrefixRow> prefix_rows;
  std::vector<std::int64_t> sums, mass;
  CenterTable centers;
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
    find_axes(0);
    if (!keep) return;
    find_axes(options.max_memory_bytes - bytes - others);
    codes = std::make_unique_for_overwrite<std::uint8_t[]>(bytes);
    // Read by the last scan, never used: the rest is written before.
    std::fill_n(codes.get() + rows.size() * coding.bytes(), kScanRows * coding.bytes(), 0);
  }

  void find_axes(std::size_t left_bytes);

  // One assign: the centers regrouped and what is known of their movement.
  struct Work {
    CenterTable::Pack all, moved;
    std::vector<double> drift;  // how far each center moved; infinity the first time
  };

  // One thread's buffers.
  struct Scratch {
    std::vector<std::uint8_t> block, group, prefix_group;
    std::vector<PrefixRow> prefix_rows;
    std::vector<float> values, projected;
    std::vector<double> row;
    std::vector<ScanRow> scan;
    std::vector<Hit> hits, sorted;
    std::vector<std::uint32_t> full, part;
    std::size_t scanned = 0;    // rows compared to all centers
    std::size_t evaluated = 0;  // exact distances that was left to compute for them
    std::size_t looked = 0;     // pairs of rows and centers compared along the axes
    std::size_t met = 0;        // those of them that were compared in full
  };
  std::vector<Scratch> buffers;  // by thread; kept, as fresh memory is cleared page by page

  std::size_t assign(const double* values);
  bool too_coarse() const;
  bool axes_pay() const;
  void encode_block(std::size_t first_row, std::size_t count, std::uint8_t* block,
                    Scratch& scratch);
  void assign_block(std::size_t first_row, std::size_t count, const Work& work, Scratch& scratch);
  void lower_upper_bound(RowState& row, std::int32_t label, const std::uint8_t* code,
                         const Work& work);
  void scan_rows(std::size_t first_row, const std::vector<std::uint32_t>& which,
                 const std::uint8_t* block, bool all, const Work& work, Scratch& scratch);
  std::size_t scan_panels(const std::uint8_t* codes, const std::uint8_t* prefix_codes,
                          const PrefixRow* prefix, std::size_t n, const CenterTable::Pack& pack,
                          Scratch& scratch);
  std::size_t drop_hits(std::size_t n_hits, std::size_t n, Scratch& scratch);
  double distance_to(std::int32_t center, const Scratch& scratch) const {
    return centers.squared_distance_to(scratch.row.data(), center);
  }
  void decide_crowded(std::size_t id, const CenterTable::Pack& pack, bool all, Scratch& scratch);
  void decide(std::size_t id, const ScanRow& scanned, const Hit* hits, std::size_t n_hits, bool all,
              Scratch& scratch);
  void update_chunk(std::size_t begin, std::size_t end, const std::vector<std::int32_t>& before);
  template <typename Visit>
  void each_distance(Visit&& visit) const;
};

}  // namespace pyids
