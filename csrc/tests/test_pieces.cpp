// Texts through the table of pieces: the bits of their means for any table, cut and threads.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "pyids/pieces.hpp"

namespace {

using pyids::Cut;
using pyids::PieceTable;
using pyids::TextBlock;

void check(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

std::vector<std::string> pieces_of(const std::string& text, Cut cut) {
  std::vector<std::string> pieces;
  pyids::cut_text(text, cut, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

void test_cuts() {
  using Pieces = std::vector<std::string>;
  check(pieces_of("", Cut::dropping).empty(), "an empty text has no pieces");
  check(pieces_of("a b", Cut::none) == Pieces{"a b"}, "a text that is not cut");
  check(pieces_of("a b  c", Cut::dropping) == Pieces{"a", "b", " c"}, "a space is dropped");
  check(pieces_of("a b  c", Cut::keeping) == Pieces{"a", " b", "  c"}, "spaces are kept");
  check(pieces_of("  a", Cut::dropping) == Pieces{"  a"}, "no cut at the beginning");
  check(pieces_of("a ", Cut::dropping) == Pieces{"a "}, "nor at a last space");
  check(pieces_of("a  ", Cut::dropping) == Pieces{"a", " "}, "two spaces at the end");
  check(pieces_of(" ", Cut::dropping) == Pieces{" "}, "a space alone");
  check(pieces_of("   ", Cut::keeping) == Pieces{"   "}, "spaces alone");
  // Every text of up to eight of two letters: put together again, no piece empty.
  for (int length = 1; length <= 8; ++length) {
    for (int bits = 0; bits < 1 << length; ++bits) {
      std::string text;
      for (int i = 0; i < length; ++i) text.push_back((bits >> i & 1) != 0 ? ' ' : 'x');
      for (const Cut cut : {Cut::dropping, Cut::keeping}) {
        std::string joined;
        for (const std::string& piece : pieces_of(text, cut)) {
          check(!piece.empty(), "no piece is empty");
          if (!joined.empty() && cut == Cut::dropping) joined.push_back(' ');
          joined += piece;
        }
        check(joined == text, "the pieces are the text");
      }
    }
  }
}

// A stand-in for a tokenizer that reads word by word.
std::vector<std::int32_t> ids_of(std::string_view piece, std::int32_t n_tokens) {
  std::vector<std::int32_t> ids;
  for (const char c : piece) {
    if (c != ' ') ids.push_back(static_cast<unsigned char>(c) % n_tokens);
  }
  return ids;
}

void test_table_is_bounded() {
  std::vector<std::int32_t> ids;
  PieceTable table(1 << 17);
  std::mt19937_64 random(1);
  for (int i = 0; i < 100000; ++i) {
    const std::string piece = std::to_string(random() % 50000);
    const auto own = ids_of(piece, 7);
    table.insert(piece, PieceTable::hash(piece), own);
    table.insert(piece, PieceTable::hash(piece), own);
    check(table.bytes() <= 1 << 17, "within its bytes");
    if (i % 97 != 0) continue;
    ids.clear();
    if (table.find(piece, PieceTable::hash(piece), ids)) check(ids == own, "its own ids");
  }
  check(table.times_emptied() > 3 && table.size() > 0, "emptied when it is full");
  ids.clear();
  const std::string longest(65, 'x');
  table.insert(longest, 1, ids_of(longest, 7));
  check(!table.find(longest, 1, ids), "long pieces are not kept");
  PieceTable none(0);
  none.insert("a", 1, ids_of("a", 7));
  check(!none.find("a", 1, ids) && none.size() == 0, "no room for anything");
}

void test_shared_slots() {
  PieceTable table(1 << 20);
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 2000; ++i) {  // one hash for all
    const std::string piece = std::to_string(i);
    table.insert(piece, 42, std::vector<std::int32_t>{i});
    ids.clear();
    check(!table.find(piece, 42, ids) || ids == std::vector<std::int32_t>{i},
          "pieces are compared");
  }
  check(table.size() == 32, "a search ends after some slots");
}

struct Model {
  std::vector<float> vectors;
  pyids::TokenTable table;
};

Model model_of(std::size_t n_tokens, std::size_t dim, std::size_t limit, std::int32_t unknown,
               bool normalize) {
  Model model;
  std::mt19937_64 random(2);
  for (std::size_t i = 0; i < n_tokens * dim; ++i) {
    model.vectors.push_back(static_cast<float>(random() % 20001) / 1e4f - 1.0f);
  }
  model.table = {model.vectors.data(), n_tokens, dim, limit, unknown, normalize};
  return model;
}

std::vector<float> means_of(const std::vector<std::string>& texts, const Model& model, Cut cut,
                            const std::vector<std::string>& whole, PieceTable& table,
                            std::shared_mutex& mutex, int n_threads) {
  const auto n_tokens = static_cast<std::int32_t>(model.table.n_tokens);
  TextBlock block({texts.begin(), texts.end()}, cut, whole);
  block.look_up(table, mutex, n_threads);
  std::vector<std::int32_t> ids;
  std::vector<std::size_t> starts{0};
  std::set<std::string_view> asked;
  for (const std::string_view text : block.missing()) {
    check(text.find('<') == std::string_view::npos || whole.empty() ||
              std::find(texts.begin(), texts.end(), text) != texts.end(),
          "a piece with a string that is not cut out is never asked for");
    const auto own = ids_of(text, n_tokens);
    ids.insert(ids.end(), own.begin(), own.end());
    starts.push_back(ids.size());
  }
  block.complete(std::move(ids), std::move(starts), table, mutex);
  std::vector<float> means(texts.size() * model.table.dim, -1.0f);
  block.average(model.table, n_threads, means.data());
  return means;
}

// One text after the other, one column after the other.
std::vector<float> plain_means(const std::vector<std::string>& texts, const Model& model) {
  const auto& table = model.table;
  std::vector<float> means;
  for (const std::string& text : texts) {
    auto ids = ids_of(text, static_cast<std::int32_t>(table.n_tokens));
    ids.resize(std::min(ids.size(), table.limit));
    std::erase(ids, table.unknown);
    for (std::size_t column = 0; column < table.dim; ++column) {
      float sum = 0;
      for (const auto id : ids)
        sum += model.vectors[static_cast<std::size_t>(id) * table.dim + column];
      means.push_back(ids.empty() ? 0.0f : sum / static_cast<float>(ids.size()));
    }
  }
  return means;
}

std::vector<std::string> random_texts(std::size_t n) {
  std::mt19937_64 random(3);
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < n; ++i) {
    std::string text;
    for (std::size_t length = random() % 60; length > 0; --length) {
      text.push_back("  abcdefgh<"[random() % 11]);
    }
    if (random() % 50 == 0) text.append(200, 'y');
    texts.push_back(text);
  }
  return texts;
}

void test_means() {
  const auto texts = random_texts(1000);
  const std::vector<std::string> whole{"<"};
  for (const std::size_t dim : {1, 31, 32, 100}) {
    for (const std::size_t limit : {std::size_t{5}, std::numeric_limits<std::size_t>::max()}) {
      const Model model = model_of(11, dim, limit, 3, false);
      const auto expected = plain_means(texts, model);
      for (const Cut cut : {Cut::none, Cut::dropping, Cut::keeping}) {
        for (const std::size_t bytes : {0, 1 << 15, 1 << 22}) {
          PieceTable table(bytes);
          std::shared_mutex mutex;
          for (const int n_threads : {1, 3}) {  // the second time from the table
            const auto means = means_of(texts, model, cut, whole, table, mutex, n_threads);
            check(means == expected, "the means of the texts");
          }
          check(cut == Cut::none || bytes < 1 << 22 || table.size() > 100, "pieces are kept");
        }
      }
    }
  }
}

void test_unit_length() {
  const auto texts = random_texts(50);
  const Model model = model_of(11, 37, 1000, -1, true);
  PieceTable table(1 << 20);
  std::shared_mutex mutex;
  const auto means = means_of(texts, model, Cut::dropping, {}, table, mutex, 1);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    double square = 0;
    for (std::size_t j = 0; j < 37; ++j) square += double{means[i * 37 + j]} * means[i * 37 + j];
    check(ids_of(texts[i], 11).empty() ? square == 0 : std::abs(square - 1) < 1e-6, "unit length");
  }
}

void test_a_table_shared_by_threads() {
  const auto texts = random_texts(2000);
  const Model model = model_of(11, 16, 1000, -1, false);
  const auto expected = plain_means(texts, model);
  PieceTable table(1 << 15);
  std::shared_mutex mutex;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 3; ++round) {
        check(means_of(texts, model, Cut::dropping, {}, table, mutex, 2) == expected, "threads");
      }
    });
  }
  for (auto& thread : threads) thread.join();
  check(table.times_emptied() > 0, "emptied under others' eyes");
}

void test_wrong_answers_are_refused() {
  PieceTable table(1 << 20);
  std::shared_mutex mutex;
  const std::vector<std::string> whole;
  for (const std::vector<std::size_t>& starts : std::vector<std::vector<std::size_t>>{
           {0, 1}, {0, 1, 2}, {0, 2, 1, 3}, {1, 1, 2, 3}, {0, 1, 2, 3, 3}}) {
    TextBlock block({"a b c"}, Cut::dropping, whole);
    block.look_up(table, mutex, 1);
    bool refused = false;
    try {
      block.complete({1, 2, 3}, starts, table, mutex);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    check(refused, "answers for other texts");
  }
  check(table.size() == 0, "nothing of them is kept");
}

}  // namespace

int main() {
  test_cuts();
  test_table_is_bounded();
  test_shared_slots();
  test_means();
  test_unit_length();
  test_a_table_shared_by_threads();
  test_wrong_answers_are_refused();
  return 0;
}
