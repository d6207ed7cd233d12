// The bounds that rule centers out (the proof is in simd.hpp), on inputs made to come close to
// them, against long double. Each term of the bound, halved, must be caught by some of these
// inputs. PYIDS_SIMD chooses the level.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "hard_inputs.hpp"
#include "pyids/codes.hpp"
#include "pyids/distance.hpp"
#include "pyids/prefix.hpp"
#include "pyids/simd.hpp"

namespace {

using namespace pyids;

// The arrays of a scan, which a test may weaken.
struct Arrays {
  std::vector<float> offset, code, rest, gap;
  std::vector<ScanRow> rows;
  std::vector<double> square, coded_length;  // of each center: |c|^2 and about |c~|
};
using Weaken = std::function<void(Arrays&)>;

struct Input {
  std::size_t d;
  bool int8;
  Values rows, centers;  // below 1 in magnitude
};

// How often a bound is on the wrong side of the distance.
std::size_t violations(const Input& input, const Weaken& weaken) {
  const std::size_t d = input.d, n = input.rows.size() / d, k = input.centers.size() / d;
  Values both = input.rows;  // and their opposites, so that the shift is zero
  for (double v : input.rows) both.push_back(-v);
  const Rows rows = view(both, d);
  const Coding coding(rows, input.int8, 0.75);
  CenterTable table(k, d);
  table.set(input.centers.data(), coding, 1);
  std::vector<std::int32_t> every(k);
  std::iota(every.begin(), every.end(), 0);
  const CenterTable::Pack pack = table.pack(every, 1);
  const CenterCodes plain = pack.view();
  const std::size_t m = pack.size();
  Arrays arrays{{plain.offset, plain.offset + m},
                {plain.code, plain.code + m},
                {plain.rest, plain.rest + m},
                {plain.gap, plain.gap + m},
                {},
                {},
                {}};
  for (std::size_t j = 0; j < k; ++j) {
    double square = 0;
    for (std::size_t t = 0; t < d; ++t) square += std::pow(input.centers[j * d + t], 2);
    arrays.square.push_back(square);
    arrays.coded_length.push_back(std::sqrt(square));
  }
  std::vector<std::uint8_t> codes((n + kScanRows) * coding.bytes());
  std::vector<float> scratch(d);
  for (std::size_t i = 0; i < n; ++i) {
    const RowCode code =
        encode_row(coding, rows, i, scratch.data(), codes.data() + i * coding.bytes());
    arrays.rows.push_back(scan_row(code, d, kInfinity, 0, -kInfinity));
  }
  weaken(arrays);
  std::vector<long double> exact(n * k);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < k; ++j) {
      long double sum = 0;
      for (std::size_t t = 0; t < d; ++t) {
        const long double c = input.centers[j * d + t];
        sum += c * (c - 2.0L * input.rows[i * d + t]);
      }
      exact[i * k + j] = sum;
    }
  }
  std::size_t count = 0;
  std::vector<float> offset(m);
  std::vector<Hit> hits(kScanRows * 16);
  for (std::size_t j = 0; j < k; ++j) {  // one center at a time: `best` is then its own bound
    std::fill(offset.begin(), offset.end(), kInfinity);
    offset[j] = arrays.offset[j];
    const std::size_t g = j / 16;
    const std::size_t group_bytes = 16 * coding.bytes();
    const CenterCodes one = {static_cast<const std::uint8_t*>(plain.packed) + g * group_bytes,
                             plain.correction + 16 * g,
                             offset.data() + 16 * g,
                             plain.scale + 16 * g,
                             arrays.code.data() + 16 * g,
                             arrays.rest.data() + 16 * g,
                             arrays.gap.data() + 16 * g,
                             plain.index + 16 * g,
                             1};
    for (std::size_t begin = 0; begin < n; begin += kScanRows) {
      const std::size_t some = std::min(kScanRows, n - begin);
      std::vector<ScanRow> state(arrays.rows.begin() + static_cast<std::ptrdiff_t>(begin),
                                 arrays.rows.begin() + static_cast<std::ptrdiff_t>(begin + some));
      const std::size_t found =
          scan(coding, codes.data() + begin * coding.bytes(), some, one, state.data(), hits.data());
      check(found >= some, "all are reported while nothing is known");
      for (std::size_t h = 0; h < found; ++h) {
        if (hits[h].lower == kInfinity) continue;
        count += static_cast<long double>(hits[h].lower) > exact[(begin + hits[h].row) * k + j];
      }
      for (std::size_t i = 0; i < some; ++i) {
        count += static_cast<long double>(state[i].best) < exact[(begin + i) * k + j];
      }
    }
  }
  return count;
}

// The first product is large, each of the others less than half its last place: all are lost.
Input lost_products() {
  const std::size_t d = 4096;
  Input input{d, false, Values(2 * d, 0x1p-13), Values(d, 0x1.ffp-14)};
  input.rows[0] = input.centers[0] = 0.5;
  input.rows[d] = -0.5;
  for (std::size_t t = 1; t < d; ++t) input.rows[d + t] = -input.rows[t];
  return input;
}

// Products that hardly matter beside the center's square.
Input lonely_centers(bool int8) {
  Input input{1, int8, {}, {}};
  for (int i = 0; i < 8; ++i) {
    input.rows.push_back(std::ldexp(between(-1, 1), -14 - 2 * i));
  }
  for (int j = 0; j < 512; ++j) input.centers.push_back(std::sqrt(between(0.5, 0.53)));
  return input;
}

// Rows half a unit off their codes, along centers that codes hold; or the other way round.
Input along_the_rest(bool of_rows) {
  const std::size_t d = 64;
  Input input{d, true, Values(d), Values(d)};
  Values& off = of_rows ? input.rows : input.centers;
  Values& held = of_rows ? input.centers : input.rows;
  const int levels = of_rows ? kernels().row_levels : 127;
  const double unit = 0x1p-9;
  for (std::size_t t = 0; t < d; ++t) {
    const int sign = generator() % 2 == 0 ? 1 : -1;
    const int whole = static_cast<int>(generator() % static_cast<unsigned>(levels / 2));
    off[t] = unit * (t == 0 ? levels : whole + 0.49 * sign);
    held[t] = sign * 63 * 0x1p-9;
  }
  return input;
}

// Constant rows and centers, which codes hold but for what float32 rounds; as many columns as make
// the integer product an odd number just above 2^24. Rows are those of many that roundings hit
// hardest: to float32, and of the largest code times the unit.
Input roundings_alone() {
  const int levels = kernels().row_levels;
  const std::size_t d = levels == 127 ? 1041 : 2097;
  std::vector<std::pair<double, double>> scored;
  for (int i = 0; i < 4000; ++i) {
    const float narrow = static_cast<float>(between(0.5, 0.52));
    const float unit = narrow / static_cast<float>(levels);
    const double x = narrow + 0.499 * (step(narrow, 1) - narrow);
    const double coded = static_cast<double>(unit) * levels;
    const double measured = std::fabs(narrow - static_cast<float>(coded));
    scored.emplace_back(measured - (x - coded), x);
  }
  std::sort(scored.begin(), scored.end());
  Input input{d, true, {}, {}};
  for (int i = 0; i < 32; ++i) {
    for (std::size_t t = 0; t < d; ++t)
      input.rows.push_back(scored[static_cast<std::size_t>(i)].second);
  }
  for (int j = 0; j < 256; ++j) {
    const double c = std::ldexp(between(0.5, 0.52), -9);
    for (std::size_t t = 0; t < d; ++t) input.centers.push_back(c);
  }
  return input;
}

void test_bounds_hold_and_each_term_is_needed() {
  struct Term {
    const char* name;
    std::function<Input()> input;
    Weaken weaken;
    int tries;
  };
  const auto halve = [](std::vector<float>& values) {
    for (float& v : values) v /= 2;
  };
  std::vector<Term> terms = {
      {"rounding of products", lost_products, [&](Arrays& a) { halve(a.code); }, 1},
      {"room of the offset", [] { return lonely_centers(false); },
       [](Arrays& a) {
         for (std::size_t j = 0; j < a.square.size(); ++j) {
           a.offset[j] = static_cast<float>(a.square[j] * (1 - 1.25 * kUnit));
         }
       },
       4},
      {"gap", [] { return lonely_centers(false); }, [&](Arrays& a) { halve(a.gap); }, 4},
  };
  if (kernels().scan_i8 != nullptr) {
    terms.push_back({"rest of a row", [] { return along_the_rest(true); },
                     [](Arrays& a) {
                       for (ScanRow& row : a.rows) row.rest /= 2;
                     },
                     8});
    terms.push_back({"rest of a center", [] { return along_the_rest(false); },
                     [&](Arrays& a) { halve(a.code); }, 8});
    terms.push_back({"rounding of int8 products", roundings_alone,
                     [](Arrays& a) {
                       for (std::size_t j = 0; j < a.square.size(); ++j) {
                         a.code[j] -= static_cast<float>(kIntRounding * a.coded_length[j]);
                       }
                     },
                     1});
    terms.push_back({"rounding of a row", roundings_alone,
                     [](Arrays& a) {
                       for (ScanRow& row : a.rows) row.rest -= row.code * 0x1p-23f;
                     },
                     1});
  }
  for (const Term& term : terms) {
    std::size_t caught = 0;
    for (int i = 0; i < term.tries; ++i) {
      const Input input = term.input();
      check(violations(input, [](Arrays&) {}) == 0, std::string("a bound lies: ") + term.name);
      caught += violations(input, term.weaken);
    }
    check(caught > 0, std::string("weakened and not noticed: ") + term.name);
    std::printf("%s: %zu caught\n", term.name, caught);
  }
}

// ---- the first look along principal axes --------------------------------------------------------

struct Look {
  std::vector<float> code, rest, tail;  // of the centers
  std::vector<PrefixRow> rows;
};

// How often the first look rules a center out that is as near as the row's upper bound says.
std::size_t missed(const Rows& rows, const Coding& coding, const PrincipalAxes& axes,
                   const Values& values, const Values& centers,
                   const std::function<void(Look&)>& weaken) {
  const std::size_t d = coding.n_cols(), p = axes.size();
  const std::size_t k = centers.size() / d, n = k;
  CenterTable table(k, d);
  table.set(centers.data(), coding, 1, &axes);
  std::vector<std::int32_t> every(k);
  std::iota(every.begin(), every.end(), 0);
  const CenterTable::Pack pack = table.pack(every, 1);
  const PrefixCodes plain = pack.prefix(0);
  const std::size_t m = pack.size();
  Look look{
      {plain.code, plain.code + m}, {plain.rest, plain.rest + m}, {plain.tail, plain.tail + m}, {}};
  std::vector<std::uint8_t> codes(kScanRows * coding.bytes()), prefixes(kScanRows * p);
  std::vector<float> scratch(d), projected(p);
  std::vector<ScanRow> state;
  const int levels = kernels().row_levels;
  for (std::size_t i = 0; i < n; ++i) {
    const RowCode code =
        encode_row(coding, rows, i, scratch.data(), codes.data() + i * coding.bytes());
    axes.project(scratch.data(), 1, projected.data());
    look.rows.push_back(
        axes.encode(projected.data(), code.square, levels, levels + 1, prefixes.data() + i * p));
    state.push_back(scan_row(code, d, kInfinity, 0, -kInfinity));
  }
  weaken(look);
  std::size_t count = 0;
  std::vector<Hit> hits(kScanRows * 16);
  std::vector<float> offset(16);
  for (std::size_t j = 0; j < k; ++j) {  // one center at a time: no other may lower `best`
    const std::size_t g = j / 16;
    CenterCodes alone = pack.view(g, 1);
    std::fill(offset.begin(), offset.end(), kInfinity);
    offset[j % 16] = alone.offset[j % 16];
    alone.offset = offset.data();
    PrefixCodes prefix = pack.prefix(g);
    prefix.code = look.code.data() + 16 * g;
    prefix.rest = look.rest.data() + 16 * g;
    prefix.tail = look.tail.data() + 16 * g;
    for (std::size_t i = 0; i < n; ++i) {
      long double exact = 0;
      const auto unit = static_cast<long double>(coding.unit());
      for (std::size_t t = 0; t < d; ++t) {
        const long double shift = coding.shift()[t];
        const long double c = centers[j * d + t] * unit - shift;
        exact += c * (c - 2.0L * (values[i * d + t] * unit - shift));
      }
      ScanRow one = state[i];
      one.best = std::nextafter(static_cast<float>(exact), kInfinity);
      std::size_t met = 0;
      const std::size_t found = kernels().scan_prefix_i8(
          prefixes.data() + i * p, &look.rows[i], prefix, codes.data() + i * coding.bytes(),
          coding.bytes(), 1, alone, &one, hits.data(), &met);
      bool reported = false;
      for (std::size_t h = 0; h < found; ++h) {
        reported |= hits[h].center == static_cast<std::int32_t>(j);
      }
      count += !reported;
    }
  }
  return count;
}

// Rows within the axes, or far outside, and centers along them; each term halved is noticed.
void test_first_look() {
  if (kernels().scan_prefix_i8 == nullptr) return;
  const std::size_t d = 128, n = 8;
  Values values(256 * d), centers(n * d);  // many rows, so that there are as many axes
  for (double& v : values) v = static_cast<float>(between(-0.7, 0.7));
  const Rows all = view(values, d);
  const Coding coding(all, true, 0.75);
  std::size_t caught[3] = {};
  for (const std::size_t p : {16, 64, 128}) {
    const auto axes = PrincipalAxes::of(all, coding, p, 1.0);
    check(axes.has_value(), "there are axes");
    Values columns(p * d);  // the axes themselves, seen by projecting units
    std::vector<float> unit(d), out(p);
    for (std::size_t t = 0; t < d; ++t) {
      std::fill(unit.begin(), unit.end(), 0.0f);
      unit[t] = 1;
      axes->project(unit.data(), 1, out.data());
      for (std::size_t a = 0; a < p; ++a) columns[a * d + t] = static_cast<double>(out[a]);
    }
    for (int kind = 0; kind < 3; ++kind) {
      // 0: centers are the rows; 1, 2: rows (centers) half a unit off their codes along the axes,
      // centers (rows) of equal coordinates in that direction.
      for (std::size_t i = 0; i < n; ++i) {
        Values off(d), held(d);
        for (std::size_t a = 0; a < std::min<std::size_t>(p, 64); ++a) {
          const int sign = generator() % 2 == 0 ? 1 : -1;
          const int levels = kind == 1 ? kernels().row_levels : 127;
          const int whole = static_cast<int>(generator() % static_cast<unsigned>(levels / 2));
          const double x = 0x1p-10 * (a == 0 ? levels : whole + 0.49 * sign);
          for (std::size_t t = 0; t < d; ++t) {
            off[t] += x * columns[a * d + t];
            held[t] += sign * 63 * 0x1p-10 * columns[a * d + t];
          }
        }
        for (std::size_t t = 0; t < d; ++t) {
          const double shift = coding.shift()[t];
          double& x = values[i * d + t];
          double& c = centers[i * d + t];
          if (kind == 0) {
            c = x = static_cast<float>(between(-0.7, 0.7));
          } else {
            x = static_cast<float>(((kind == 1 ? off[t] : held[t]) + shift) / coding.unit());
            c = static_cast<float>(((kind == 1 ? held[t] : off[t]) + shift) / coding.unit());
          }
        }
      }
      const auto weakened = [&](int term) {
        return missed(all, coding, *axes, values, centers, [&](Look& look) {
          for (PrefixRow& row : look.rows) {
            if (term == 0) row.tail /= 2;
            if (term == 1) row.rest /= 2;
          }
          if (term == 2) {
            for (float& v : look.code) v /= 2;
          }
        });
      };
      check(weakened(-1) == 0, "the first look lies");
      caught[kind] += weakened(kind);
    }
  }
  check(caught[0] > 0, "weakened and not noticed: tail");
  check(caught[1] > 0, "weakened and not noticed: rest of a row along the axes");
  check(caught[2] > 0, "weakened and not noticed: rest of a center along the axes");
  std::printf("first look: %zu, %zu, %zu caught\n", caught[0], caught[1], caught[2]);
}

// Two centers that float64 cannot tell apart from the row, though one is nearer: neither may rule
// the other out.
void test_ties_of_float64() {
  std::size_t caught = 0;
  for (int i = 0; i < 2000; ++i) {
    const Values both = {1, -1};
    const Values centers = {between(-1, 1) * 0x1p-53, between(-1, 1) * 0x1p-53};
    const Rows rows = view(both, 1);
    const Coding coding(rows, false, 1);
    CenterTable table(2, 1);
    table.set(centers.data(), coding, 1);
    float code[16] = {};
    const RowCode row = encode_row(coding, rows, 0, nullptr, reinterpret_cast<std::uint8_t*>(code));
    float lower[2], upper[2], naive[2];
    for (std::int32_t j = 0; j < 2; ++j) {
      Hit hits[64];
      const CenterTable::Pack pack = table.pack({j}, 1);
      ScanRow state = scan_row(row, 1, kInfinity, 0, -kInfinity);
      scan(coding, reinterpret_cast<std::uint8_t*>(code), 1, pack.view(), &state, hits);
      lower[j] = hits[0].lower;
      upper[j] = state.best;
      state = scan_row(row, 1, kInfinity, 0, -kInfinity);
      state.round = 0;
      scan(coding, reinterpret_cast<std::uint8_t*>(code), 1, pack.view(), &state, hits);
      naive[j] = state.best;
    }
    const double one = 1;
    const double first = squared_distance(&one, &centers[0], 1);
    const double second = squared_distance(&one, &centers[1], 1);
    if (first <= second) check(lower[0] <= upper[1], "a tie of float64");
    if (second <= first) check(lower[1] <= upper[0], "a tie of float64");
    caught += (first == second) && (lower[0] > naive[1] || lower[1] > naive[0]);
  }
  check(caught > 0, "weakened and not noticed: float64's own rounding");
}

}  // namespace

int main() {
  test_bounds_hold_and_each_term_is_needed();
  test_first_look();
  test_ties_of_float64();
  std::printf("bounds ok at %s\n", simd_name(simd_level()));
}
