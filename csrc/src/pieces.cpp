#include "pyids/pieces.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include "pyids/parallel.hpp"

namespace pyids {

namespace {

constexpr std::size_t kTextsInPart = 64;
constexpr std::uint32_t kMissing = std::numeric_limits<std::uint32_t>::max();
// Longer pieces are rare, and rarely seen again.
constexpr std::size_t kMostBytes = 64, kMostIds = 512;
constexpr std::size_t kFirstSlots = 1 << 10;
// Slots looked at for a piece: whoever makes texts whose pieces share a slot makes them unknown,
// not the search long.
constexpr std::size_t kMostProbes = 32;

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

std::size_t words_for(std::size_t n_bytes) { return (n_bytes + 3) / 4; }

}  // namespace

// ---- the table ----------------------------------------------------------------------------------

PieceTable::PieceTable(std::size_t max_bytes)
    : max_slots_(kFirstSlots), max_words_(std::min(max_bytes / 2, std::size_t{1} << 33) / 4) {
  while (2 * max_slots_ * sizeof(Slot) <= max_bytes / 2) max_slots_ *= 2;
  slots_.resize(kFirstSlots);
}

std::uint64_t PieceTable::hash(std::string_view piece) {
  constexpr std::uint64_t kA = 0x9e3779b97f4a7c15, kB = 0xd1b54a32d192ed03;
  std::uint64_t state = kA ^ (piece.size() * kB);
  const char* at = piece.data();
  std::size_t left = piece.size();
  std::uint64_t word;
  for (; left >= 8; at += 8, left -= 8) {
    std::memcpy(&word, at, 8);
    state = mix(state ^ word, kB);
  }
  word = 0;
  std::memcpy(&word, at, left);
  return mix(mix(state ^ word, kB), kA);
}

std::string_view PieceTable::piece_of(const Slot& slot) const {
  const std::uint32_t* ids = words_.data() + slot.record - 1;
  return {reinterpret_cast<const char*>(ids + slot.n_ids), slot.n_bytes};
}

bool PieceTable::find(std::string_view piece, std::uint64_t hash,
                      std::vector<std::int32_t>& ids) const {
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t probe = 0; probe < kMostProbes; ++probe) {
    const Slot& slot = slots_[(hash + probe) & mask];
    if (slot.record == 0) return false;
    if (slot.hash != hash || piece_of(slot) != piece) continue;
    const std::uint32_t* begin = words_.data() + slot.record - 1;
    ids.insert(ids.end(), begin, begin + slot.n_ids);
    return true;
  }
  return false;
}

void PieceTable::insert(std::string_view piece, std::uint64_t hash,
                        std::span<const std::int32_t> ids) {
  if (piece.size() > kMostBytes || ids.size() > kMostIds) return;
  const std::size_t needed = ids.size() + words_for(piece.size());
  if (needed > max_words_) return;
  if (words_.size() + needed > max_words_) clear();
  if (2 * (n_pieces_ + 1) > slots_.size()) {
    if (slots_.size() < max_slots_) {
      grow();
    } else {
      clear();
    }
  }
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t probe = 0; probe < kMostProbes; ++probe) {
    Slot& slot = slots_[(hash + probe) & mask];
    if (slot.record != 0) {
      if (slot.hash == hash && piece_of(slot) == piece) return;
      continue;
    }
    if (words_.size() + needed > words_.capacity()) {
      words_.reserve(std::min(max_words_, 2 * words_.capacity() + 1024));
    }
    slot = {hash, static_cast<std::uint32_t>(words_.size() + 1),
            static_cast<std::uint16_t>(piece.size()), static_cast<std::uint16_t>(ids.size())};
    words_.insert(words_.end(), ids.begin(), ids.end());
    const std::size_t bytes_at = words_.size();
    words_.resize(bytes_at + words_for(piece.size()));
    std::memcpy(words_.data() + bytes_at, piece.data(), piece.size());
    ++n_pieces_;
    return;
  }
}

void PieceTable::clear() {
  std::fill(slots_.begin(), slots_.end(), Slot{});
  words_.clear();
  n_pieces_ = 0;
  ++times_emptied_;
}

void PieceTable::grow() {
  std::vector<Slot> larger(2 * slots_.size());
  const std::size_t mask = larger.size() - 1;
  for (const Slot& slot : slots_) {
    if (slot.record == 0) continue;
    for (std::size_t probe = 0; probe < kMostProbes; ++probe) {
      Slot& place = larger[(slot.hash + probe) & mask];
      if (place.record != 0) continue;
      place = slot;
      break;
    }
  }
  slots_.swap(larger);
}

std::size_t PieceTable::bytes() const {
  return slots_.capacity() * sizeof(Slot) + words_.capacity() * sizeof(std::uint32_t);
}

// ---- the mean -----------------------------------------------------------------------------------

namespace {

// Every processor that this is compiled for adds four floats at once. Wider ones would not change
// the bits, and reading the vectors is most of the work.
typedef float Lanes __attribute__((vector_size(16)));
constexpr std::size_t kLanes = 4, kVectors = 8, kColumns = kVectors * kLanes;

// Sums kColumns columns, in registers.
void sum_columns(const TokenTable& table, std::span<const std::int32_t> ids, std::size_t column,
                 float* sums) {
  Lanes local[kVectors] = {};
  for (const std::int32_t id : ids) {
    const float* vector = table.vectors + static_cast<std::size_t>(id) * table.dim + column;
    for (std::size_t i = 0; i < kVectors; ++i) {
      Lanes lanes;
      std::memcpy(&lanes, vector + i * kLanes, sizeof lanes);
      local[i] += lanes;
    }
  }
  std::memcpy(sums + column, local, sizeof local);
}

// As torch.nn.functional.normalize: no vector is divided by less than 1e-12.
void scale_to_unit(float* vector, std::size_t dim) {
  double squares[8] = {};
  for (std::size_t i = 0; i < dim; ++i) {
    squares[i % 8] += static_cast<double>(vector[i]) * static_cast<double>(vector[i]);
  }
  double square = 0;
  for (const double lane : squares) square += lane;
  const float length = std::max(static_cast<float>(std::sqrt(square)), 1e-12f);
  for (std::size_t i = 0; i < dim; ++i) vector[i] /= length;
}

}  // namespace

void mean_of_tokens(const TokenTable& table, std::span<const std::int32_t> ids, float* mean) {
  std::size_t column = 0;
  for (; column + kColumns <= table.dim; column += kColumns) {
    sum_columns(table, ids, column, mean);
  }
  for (; column < table.dim; ++column) {
    float sum = 0;
    for (const std::int32_t id : ids) {
      sum += table.vectors[static_cast<std::size_t>(id) * table.dim + column];
    }
    mean[column] = sum;
  }
  if (ids.empty()) return;
  const auto n_ids = static_cast<float>(ids.size());
  for (std::size_t i = 0; i < table.dim; ++i) mean[i] /= n_ids;
  if (table.normalize) scale_to_unit(mean, table.dim);
}

// ---- a block of texts ---------------------------------------------------------------------------

TextBlock::TextBlock(std::vector<std::string_view> texts, Cut cut,
                     const std::vector<std::string>& whole)
    : texts_(std::move(texts)), cut_(cut), whole_strings_(whole) {
  parts_.resize(n_parts());
}

std::size_t TextBlock::n_parts() const { return (texts_.size() + kTextsInPart - 1) / kTextsInPart; }

void TextBlock::look_up_part(std::size_t number, const PieceTable& table) {
  Part& part = parts_[number];
  const std::size_t begin = number * kTextsInPart;
  const std::size_t end = std::min(texts_.size(), begin + kTextsInPart);
  for (std::size_t text = begin; text < end; ++text) {
    check_interrupt();
    cut_text(texts_[text], cut_, [&](std::string_view piece) {
      const std::uint64_t hash = PieceTable::hash(piece);
      const std::size_t before = part.ids.size();
      if (piece.size() <= kMostBytes && table.find(piece, hash, part.ids)) {
        part.pieces.push_back({static_cast<std::uint32_t>(part.ids.size() - before), 0});
        return;
      }
      part.pieces.push_back({kMissing, static_cast<std::uint32_t>(part.missing.size())});
      part.missing.push_back(piece);
      part.hashes.push_back(hash);
    });
    part.ends.push_back(part.pieces.size());
  }
}

void TextBlock::look_up(const PieceTable& table, std::shared_mutex& mutex, int n_threads) {
  {
    const std::shared_lock lock(mutex);
    parallel_blocks(parts_.size(), n_threads,
                    [&](std::size_t part, int) { look_up_part(part, table); });
  }
  std::unordered_map<std::string_view, std::uint32_t> numbers;
  std::vector<char> not_cut;  // of each missing piece: whether its text is taken whole
  for (Part& part : parts_) {
    for (std::size_t i = 0; i < part.missing.size(); ++i) {
      const std::string_view piece = part.missing[i];
      const auto [at, is_new] = numbers.emplace(piece, static_cast<std::uint32_t>(missing_.size()));
      part.numbers.push_back(at->second);
      if (!is_new) continue;
      missing_.push_back(piece);
      hashes_.push_back(part.hashes[i]);
      not_cut.push_back(std::any_of(
          whole_strings_.begin(), whole_strings_.end(),
          [&](const std::string& text) { return piece.find(text) != std::string_view::npos; }));
    }
  }
  whole_.assign(texts_.size(), 0);
  if (std::find(not_cut.begin(), not_cut.end(), 1) != not_cut.end()) find_whole_texts(not_cut);
}

// A piece that may not be cut out is never asked for, so never known: its text is missing instead.
void TextBlock::find_whole_texts(const std::vector<char>& not_cut) {
  std::vector<std::uint32_t> renumbered;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < missing_.size(); ++i) {
    renumbered.push_back(static_cast<std::uint32_t>(kept));
    if (not_cut[i]) continue;
    missing_[kept] = missing_[i];
    hashes_[kept++] = hashes_[i];
  }
  missing_.resize(kept);
  hashes_.resize(kept);
  for (std::size_t number = 0; number < parts_.size(); ++number) {
    Part& part = parts_[number];
    std::size_t at = 0;
    for (std::size_t i = 0; i < part.ends.size(); ++i) {
      bool whole = false;
      for (; at < part.ends[i]; ++at) {
        const Piece& piece = part.pieces[at];
        whole = whole || (piece.n_ids == kMissing && not_cut[part.numbers[piece.missing]]);
      }
      if (!whole) continue;
      const std::size_t text = number * kTextsInPart + i;
      missing_.push_back(texts_[text]);
      whole_[text] = static_cast<std::uint32_t>(missing_.size());
    }
    for (std::uint32_t& n : part.numbers) n = renumbered[n];
  }
}

void TextBlock::complete(std::vector<std::int32_t> ids, std::vector<std::size_t> starts,
                         PieceTable& table, std::shared_mutex& mutex) {
  if (starts.size() != missing_.size() + 1 || starts.front() != 0 || starts.back() != ids.size() ||
      !std::is_sorted(starts.begin(), starts.end())) {
    throw std::invalid_argument("the tokenizer answered for another number of texts");
  }
  ids_ = std::move(ids);
  starts_ = std::move(starts);
  if (cut_ == Cut::none) return;
  const std::unique_lock lock(mutex);
  for (std::size_t i = 0; i < hashes_.size(); ++i) {
    table.insert(missing_[i], hashes_[i],
                 std::span(ids_).subspan(starts_[i], starts_[i + 1] - starts_[i]));
  }
}

void TextBlock::average(const TokenTable& table, int n_threads, float* means) const {
  parallel_blocks(parts_.size(), n_threads, [&](std::size_t number, int) {
    const Part& part = parts_[number];
    const auto asked = [&](std::size_t i) {
      return std::span(ids_).subspan(starts_[i], starts_[i + 1] - starts_[i]);
    };
    std::vector<std::int32_t> own;
    std::size_t left = 0;
    const auto take = [&](std::span<const std::int32_t> ids) {
      const std::size_t n = std::min(left, ids.size());
      left -= n;
      for (const std::int32_t id : ids.first(n)) {
        if (id != table.unknown) own.push_back(id);
      }
    };
    std::size_t at = 0, known = 0;
    for (std::size_t i = 0; i < part.ends.size(); ++i) {
      check_interrupt();
      const std::size_t text = number * kTextsInPart + i;
      own.clear();
      left = table.limit;
      if (whole_[text] != 0) take(asked(whole_[text] - 1));
      for (; at < part.ends[i]; ++at) {
        const Piece& piece = part.pieces[at];
        if (piece.n_ids == kMissing) {
          if (whole_[text] == 0) take(asked(part.numbers[piece.missing]));
        } else {
          if (whole_[text] == 0) take(std::span(part.ids).subspan(known, piece.n_ids));
          known += piece.n_ids;
        }
      }
      mean_of_tokens(table, own, means + text * table.dim);
    }
  });
}

}  // namespace pyids
