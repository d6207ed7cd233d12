// Which center is nearest to each row of a block: scans of codes rule out, exact distances decide.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "assigner.hpp"

namespace pyids {

namespace {

[[noreturn]] void refuse_row(std::size_t id) {
  throw std::invalid_argument("row " + std::to_string(id) +
                              " has no nearest center: does the scale hold for its values?");
}

}  // namespace

void Assigner::State::encode_block(std::size_t first_row, std::size_t count, std::uint8_t* block,
                                   Scratch& scratch) {
  const std::size_t d = rows.n_cols(), p = axes ? axes->size() : 0;
  scratch.values.resize((p > 0 ? kScanRows : 1) * d);
  scratch.projected.resize(kScanRows * p);
  for (std::size_t begin = 0; begin < count; begin += kScanRows) {
    const std::size_t n = std::min(kScanRows, count - begin), first_id = first_row + begin;
    for (std::size_t i = 0; i < n; ++i) {
      known[first_id + i].code =
          encode_row(coding, rows, first_id + i, scratch.values.data() + (p > 0 ? i * d : 0),
                     block + (begin + i) * coding.bytes());
    }
    if (p == 0) continue;
    axes->project(scratch.values.data(), n, scratch.projected.data());
    const int levels = kernels().row_levels;
    for (std::size_t i = 0; i < n; ++i) {
      prefix_rows[first_id + i] =
          axes->encode(scratch.projected.data() + i * p, known[first_id + i].code.square, levels,
                       levels + 1, prefixes.get() + (first_id + i) * p);
    }
  }
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
    encode_block(first_row, count, block, scratch);
  }
  scratch.full.clear();
  scratch.part.clear();
  for (std::size_t i = 0; i < count; ++i) {
    RowState& row = known[first_row + i];
    if (!first) lower_upper_bound(row, labels[first_row + i], block + i * bytes, work);
    // Centers that did not move are all farther than `lower`.
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

// Compares some rows of a block to all centers, or to those that moved.
void Assigner::State::scan_rows(std::size_t first_row, const std::vector<std::uint32_t>& which,
                                const std::uint8_t* block, bool all, const Work& work,
                                Scratch& scratch) {
  const std::size_t bytes = coding.bytes();
  const CenterTable::Pack& pack = all ? work.all : work.moved;
  scratch.scan.resize(kScanRows);
  scratch.row.resize(rows.n_cols());
  scratch.group.resize(kScanRows * bytes);  // rows may be coded anew meanwhile
  const std::size_t p = axes ? axes->size() : 0;
  scratch.prefix_group.resize(kScanRows * p);
  scratch.prefix_rows.resize(kScanRows);
  for (std::size_t begin = 0; begin < which.size(); begin += kScanRows) {
    const std::size_t n = std::min(kScanRows, which.size() - begin);
    for (std::size_t i = 0; i < n; ++i) {
      const RowState& row = known[first_row + which[begin + i]];
      const float reach = row.upper + row.code.square;
      const float margin = reach < kInfinity ? options.margin * std::max(0.0f, reach) : 0.0f;
      scratch.scan[i] = scan_row(row.code, rows.n_cols(), row.upper, margin, -kInfinity);
    }
    const std::uint8_t* codes_of_group = block + which[begin] * bytes;
    const std::size_t at = p > 0 ? first_row + which[begin] : 0;
    const std::uint8_t* prefix_codes = prefixes.get() + at * p;
    const PrefixRow* prefix = prefix_rows.data() + at;
    if (which[begin + n - 1] != which[begin] + n - 1) {
      for (std::size_t i = 0; i < n; ++i) {
        std::memcpy(scratch.group.data() + i * bytes, block + which[begin + i] * bytes, bytes);
        if (p == 0) continue;
        const std::size_t id = first_row + which[begin + i];
        std::memcpy(scratch.prefix_group.data() + i * p, prefixes.get() + id * p, p);
        scratch.prefix_rows[i] = prefix_rows[id];
      }
      codes_of_group = scratch.group.data();
      prefix_codes = scratch.prefix_group.data();
      prefix = scratch.prefix_rows.data();
    }
    const std::size_t n_hits = scan_panels(codes_of_group, prefix_codes, prefix, n, pack, scratch);
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

// Scans all centers of a pack, some at a time, so that what is reported takes bounded memory: what
// turns out to be too far is dropped, and a row that too many centers may be nearest to is marked
// by best = -infinity. Returns the number of hits.
std::size_t Assigner::State::scan_panels(const std::uint8_t* codes,
                                         const std::uint8_t* prefix_codes, const PrefixRow* prefix,
                                         std::size_t n, const CenterTable::Pack& pack,
                                         Scratch& scratch) {
  const std::size_t n_groups = pack.size() / 16;
  const std::size_t most = kScanRows * 16 * std::min(n_groups, kPanelGroups) +
                           std::min(kMostHits, kScanRows * pack.size());
  // Never to fewer: growing again would clear them.
  if (scratch.hits.size() < most) scratch.hits.resize(most);
  std::size_t n_hits = 0;
  for (std::size_t group = 0; group < n_groups; group += kPanelGroups) {
    check_interrupt();
    const CenterCodes panel = pack.view(group, std::min(kPanelGroups, n_groups - group));
    ScanRow* const state = scratch.scan.data();
    Hit* const hits = scratch.hits.data() + n_hits;
    if (pack.has_prefix() && !first) {  // before, too little is known of the nearest
      n_hits += kernels().scan_prefix_i8(prefix_codes, prefix, pack.prefix(group), codes,
                                         coding.bytes(), n, panel, state, hits, &scratch.met);
      scratch.looked += n * panel.n_groups * 16;
    } else {
      n_hits += scan(coding, codes, n, panel, state, hits);
    }
    if (n_hits > kMostHits) n_hits = drop_hits(n_hits, n, scratch);
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

// The label of a row, by its exact distances to all centers of a pack and to its own.
void Assigner::State::decide_crowded(std::size_t id, const CenterTable::Pack& pack, bool all,
                                     Scratch& scratch) {
  RowState& row = known[id];
  const double square_unit = coding.unit() * coding.unit();
  rows.load(id, scratch.row.data());
  Nearest found;
  if (labels[id] >= 0) found.meet(labels[id], distance_to(labels[id], scratch));
  for (std::int32_t center : pack.centers()) {
    if (center % 256 == 0) check_interrupt();
    if (center != labels[id]) found.meet(center, distance_to(center, scratch));
  }
  scratch.evaluated += all ? pack.size() : 0;
  if (found.center < 0) refuse_row(id);
  const float lower = below(found.second * square_unit, row.code);
  row.lower = all ? lower : std::min(lower, row.lower);
  row.upper = above(found.distance * square_unit, row.code);
  labels[id] = found.center;
}

// The label of one row, from the centers that a scan could not rule out.
void Assigner::State::decide(std::size_t id, const ScanRow& scanned, const Hit* hits,
                             std::size_t n_hits, bool all, Scratch& scratch) {
  RowState& row = known[id];
  const std::int32_t own = labels[id];
  const double square_unit = coding.unit() * coding.unit();
  // What was not reported is farther than this; of what was not scanned, row.lower knows.
  float lower = round_down(static_cast<double>(scanned.best) + scanned.margin);
  if (!all) lower = std::min(lower, row.lower);
  std::int32_t winner = all ? -1 : own;  // a scan of moved centers need not have met the own one
  bool single = true;
  float own_lower = kInfinity;
  for (std::size_t h = 0; h < n_hits; ++h) {
    const Hit& hit = hits[h];
    if (hit.lower > scanned.best) {
      float& bound = hit.center == own ? own_lower : lower;
      bound = std::min(bound, hit.lower);
    } else if (hit.center != winner) {
      single = single && winner < 0;
      winner = hit.center;
    }
  }
  if (single) {
    if (winner != own) lower = std::min(lower, own_lower);
    row.upper = scanned.best;
  } else {
    rows.load(id, scratch.row.data());
    Nearest found;
    auto meet = [&](std::int32_t center) {
      found.meet(center, distance_to(center, scratch));
      scratch.evaluated += all;
    };
    if (own >= 0) meet(own);
    for (std::size_t h = 0; h < n_hits; ++h) {
      const Hit& hit = hits[h];
      if (hit.center == own || hit.lower > scanned.best) continue;
      if (hit.lower > above(found.distance * square_unit, row.code)) {
        lower = std::min(lower, hit.lower);
      } else {
        meet(hit.center);
      }
    }
    winner = found.center;
    row.upper = above(found.distance * square_unit, row.code);
    lower = std::min(lower, below(found.second * square_unit, row.code));
  }
  if (winner < 0) refuse_row(id);
  row.lower = lower;
  labels[id] = winner;
}

}  // namespace pyids
