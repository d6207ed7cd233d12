// Mean token vectors of texts whose pieces are remembered: a text is cut at spaces, a piece that
// was seen before has its token ids in a table, and only new pieces go through a tokenizer.
//
// Nothing here knows a tokenizer. That the ids of a text are those of its pieces, one after the
// other, is for the caller to know (pyids/encoders/pieces.py proves it for some tokenizers); then a
// text's ids, and the bits of its mean, depend on neither the table nor its size nor what it held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pyids {

// How a text is cut into pieces.
enum class Cut {
  none,      // the text is one piece
  dropping,  // before a run of spaces between two other bytes; the run's first space is dropped
  keeping,   // the same, and the run stays in the piece that it begins
};

// Calls visit(piece) for each piece of a text, in order; no piece is empty.
//
// A cut is made at the first space of each run of spaces (U+0020), unless the text begins or ends
// with that byte. Without a cut at a last single space, what is left of it by `dropping` is never
// empty. In UTF-8 the byte of a space is no part of another character.
template <class Visit>
void cut_text(std::string_view text, Cut cut, Visit&& visit) {
  if (text.empty()) return;
  std::size_t begin = 0;
  if (cut != Cut::none) {
    constexpr std::size_t none = std::string_view::npos;
    for (std::size_t at = text.find(' '); at != none && at + 1 < text.size();) {
      if (at > 0) {
        visit(text.substr(begin, at - begin));
        begin = cut == Cut::dropping ? at + 1 : at;
      }
      at = text.find_first_not_of(' ', at);
      if (at != none) at = text.find(' ', at);
    }
  }
  visit(text.substr(begin));
}

// Token ids of pieces, in bounded memory: when it is full, it is emptied.
class PieceTable {
 public:
  // Takes at most max_bytes, and half as much again for a moment while it grows.
  explicit PieceTable(std::size_t max_bytes);

  // Whether the piece is known; its ids are appended to `ids`.
  bool find(std::string_view piece, std::uint64_t hash, std::vector<std::int32_t>& ids) const;
  // Remembers a piece unless it is known, or too long to be worth its place.
  void insert(std::string_view piece, std::uint64_t hash, std::span<const std::int32_t> ids);

  std::size_t size() const { return n_pieces_; }
  std::size_t bytes() const;
  std::size_t times_emptied() const { return times_emptied_; }

  static std::uint64_t hash(std::string_view piece);

 private:
  struct Slot {
    std::uint64_t hash;
    std::uint32_t record;  // 1 + where its ids and then its bytes begin; 0: an empty slot
    std::uint16_t n_bytes, n_ids;
  };
  void clear();
  void grow();
  std::string_view piece_of(const Slot& slot) const;

  std::size_t max_slots_, max_words_;
  std::vector<Slot> slots_;
  std::vector<std::uint32_t> words_;
  std::size_t n_pieces_ = 0, times_emptied_ = 0;
};

// The table of token vectors, and what their mean is made of.
struct TokenTable {
  const float* vectors = nullptr;  // (n_tokens, dim), contiguous
  std::size_t n_tokens = 0, dim = 0;
  std::size_t limit = std::numeric_limits<std::size_t>::max();  // a text's first ids that count
  std::int32_t unknown = -1;  // an id that counts as no token, though it counts towards the limit
  bool normalize = false;     // scale each mean to unit length
};

// The mean of the vectors of `ids`: float32 sums in the order of the ids, divided by their number;
// zeros where no id counts. Ids must be in [0, n_tokens).
void mean_of_tokens(const TokenTable& table, std::span<const std::int32_t> ids, float* mean);

// Some texts on their way to their means: first looked up, then completed, then averaged.
class TextBlock {
 public:
  // The bytes of `texts` must live as long as the block. Pieces that hold one of the strings
  // `whole` make their text one that is not cut.
  TextBlock(std::vector<std::string_view> texts, Cut cut, const std::vector<std::string>& whole);

  // Looks every piece up, on n_threads threads.
  void look_up(const PieceTable& table, std::shared_mutex& mutex, int n_threads);
  // What the tokenizer has to be asked for: each piece once, then whole texts.
  const std::vector<std::string_view>& missing() const { return missing_; }
  // The ids of missing()[i] are ids[starts[i] .. starts[i + 1]). The pieces go into the table.
  void complete(std::vector<std::int32_t> ids, std::vector<std::size_t> starts, PieceTable& table,
                std::shared_mutex& mutex);
  // Writes the means, (texts, dim).
  void average(const TokenTable& table, int n_threads, float* means) const;

 private:
  struct Piece {
    std::uint32_t n_ids;    // in the ids of its part; kMissing: it is not known yet
    std::uint32_t missing;  // which of its part's missing pieces
  };
  struct Part {  // some texts in a row
    std::vector<Piece> pieces;
    std::vector<std::size_t> ends;  // of each text's pieces
    std::vector<std::int32_t> ids;
    std::vector<std::string_view> missing;
    std::vector<std::uint64_t> hashes;
    std::vector<std::uint32_t> numbers;  // in missing() of the block
  };
  void look_up_part(std::size_t number, const PieceTable& table);
  void find_whole_texts(const std::vector<char>& not_cut);
  std::size_t n_parts() const;

  std::vector<std::string_view> texts_;
  Cut cut_;
  const std::vector<std::string>& whole_strings_;
  std::vector<Part> parts_;
  std::vector<std::string_view> missing_;
  std::vector<std::uint64_t> hashes_;  // of the missing pieces; whole texts have none
  std::vector<std::uint32_t> whole_;   // of each text: 1 + its number in missing(), 0: it is cut
  std::vector<std::int32_t> ids_;      // of missing()
  std::vector<std::size_t> starts_;
};

}  // namespace pyids
