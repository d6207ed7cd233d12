// Rows and centers as scans see them: codes whose products are cheap and whose error is known.
#pragma once

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "pyids/matrix.hpp"
#include "pyids/simd.hpp"

namespace pyids {

inline constexpr double kUnit = 0x1p-24;              // what a float32 operation rounds, relatively
inline constexpr double kIntRounding = 5.25 * kUnit;  // of |P| in a scan of int8 codes
inline constexpr double kSquareError = 0x1p-18;  // of Kernels::square_f32, however many columns
inline constexpr double kTiny = 0x1p-120;        // of such a sum whose terms vanish
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The next float32 above the nearest one (nextafter, without the call).
inline float round_up(double v) {
  const float nearest = static_cast<float>(v);
  if (!(std::fabs(nearest) < kInfinity)) return nearest == -kInfinity ? -FLT_MAX : nearest;
  if (nearest == 0) return std::bit_cast<float>(1);
  return std::bit_cast<float>(std::bit_cast<std::int32_t>(nearest) + (nearest > 0 ? 1 : -1));
}
inline float round_down(double v) { return -round_up(-v); }

// How rows are coded: int8 where products of such codes are faster, else float32; in both cases
// less a common shift, which is near their mean so that codes need not spend their range on it. All
// that is coded is first scaled by a power of two, so that squares neither overflow nor vanish.
class Coding {
 public:
  // reach: the largest magnitude of any row's or center's value.
  Coding(const Rows& rows, bool int8, double reach);

  // Whether this processor gains by int8 codes of so many columns (they are padded), whose products
  // must fit: 255 * 127 * kMostCodes < 2^31.
  static bool int8_pays(std::size_t n_cols) {
    return kernels().scan_i8 != nullptr && n_cols >= kCodeAlignment / 2 && n_cols <= kMostCodes;
  }

  bool int8() const { return int8_; }
  std::size_t n_cols() const { return shift_.size(); }
  std::size_t bytes() const { return bytes_; }  // of one row's code
  double reach() const { return reach_; }
  double unit() const { return unit_; }                       // the power of two
  const std::vector<float>& shift() const { return shift_; }  // scaled

 private:
  double reach_, unit_;
  bool int8_;
  std::size_t bytes_;
  std::vector<float> shift_;
};

struct RowCode {
  CodeInfo info;
  float square;  // |x|^2 of the shifted and scaled row, within kSquareError and kTiny
};

// A scaled squared distance (as float64 rounds it) as scans see it, less |x|^2: not below it and
// not above it. kDistanceError leaves room for the rounding of the distance that it is compared
// with.
inline constexpr double kDistanceError = 0x1p-33;  // > 3 canonical_error(kMostColumns)
inline float above(double distance, const RowCode& code) {
  return round_up(distance * (1 + kDistanceError) - code.square * (1 - 2 * kSquareError) + kTiny);
}
inline float below(double distance, const RowCode& code) {
  return round_down(distance * (1 - kDistanceError) - code.square * (1 + 2 * kSquareError) - kTiny);
}

// What a scan starts from; best, margin and floor as ScanRow has them.
ScanRow scan_row(const RowCode& code, std::size_t n_cols, float best, float margin, float floor);

// Codes row i into code[0 .. coding.bytes()); scratch has room for n_cols floats.
RowCode encode_row(const Coding& coding, const Rows& rows, std::size_t i, float* scratch,
                   std::uint8_t* code);

// Reports, for rows with codes one after the other, the centers that may be nearest (see Kernels).
// Codes must be readable up to kScanRows rows.
inline std::size_t scan(const Coding& coding, const std::uint8_t* codes, std::size_t n_rows,
                        const CenterCodes& centers, ScanRow* state, Hit* hits) {
  return coding.int8() ? kernels().scan_i8(codes, coding.bytes(), n_rows, centers, state, hits)
                       : kernels().scan_f32(reinterpret_cast<const float*>(codes), coding.n_cols(),
                                            n_rows, centers, state, hits);
}

// Reorders hits by row, each row's in their order; starts[i] .. starts[i + 1] are those of row i.
void group_by_row(const Hit* hits, std::size_t n_hits, std::size_t n_rows, Hit* sorted,
                  std::uint32_t (&starts)[kScanRows + 1]);

class PrincipalAxes;

// All centers, exactly and coded.
class CenterTable {
 public:
  CenterTable(std::size_t n, std::size_t d) : n_(n), d_(d) {}

  std::size_t size() const { return n_; }
  // values: n x d. Codes those anew that differ from what was set before.
  // With axes, which are the same at each call, also along these.
  void set(const double* values, const Coding& coding, int n_threads,
           const PrincipalAxes* axes = nullptr);
  const double* values() const { return exact_.data(); }

  // The canonical distance of a row (as Rows::load gives it) to center j.
  double squared_distance_to(const double* row, std::int32_t j) const {
    const std::size_t at = static_cast<std::size_t>(j) * d_;
    return is_narrow_ ? kernels().squared_distance_f32(row, narrow_.data() + at, d_)
                      : kernels().squared_distance(row, exact_.data() + at, d_);
  }

  // At least the squared distance of an int8-coded row to center j, less the row's |x|^2, and so
  // much more that a center beyond it is farther as float64 rounds distances, too.
  float upper(const std::uint8_t* code, const RowCode& row, std::int32_t j) const;

  // Some centers, regrouped for a scan.
  class Pack {
   public:
    std::size_t size() const { return index.size(); }  // with the padding
    // Numbers of the centers, without the padding.
    std::span<const std::int32_t> centers() const { return {index.data(), n}; }
    CenterCodes view() const { return view(0, index.size() / 16); }
    // Some groups of 16.
    CenterCodes view(std::size_t group, std::size_t n_groups) const {
      const std::size_t at = 16 * group;
      return {packed.data() + at * bytes,
              correction.data() + at,
              offset.data() + at,
              scale.data() + at,
              code.data() + at,
              rest.data() + at,
              gap.data() + at,
              index.data() + at,
              n_groups};
    }
    bool has_prefix() const { return prefix_bytes > 0; }
    PrefixCodes prefix(std::size_t group) const {
      const std::size_t at = 16 * group;
      return {prefix_packed.data() + at * prefix_bytes,
              prefix_correction.data() + at,
              prefix_scale.data() + at,
              prefix_code.data() + at,
              prefix_rest.data() + at,
              prefix_tail.data() + at,
              prefix_bytes,
              codes};
    }

   private:
    friend class CenterTable;
    std::size_t n = 0, bytes = 0;        // centers without the padding; bytes of a code
    std::size_t prefix_bytes = 0;        // 0: none
    const std::int8_t* codes = nullptr;  // the table's, as long as it stays as it is
    std::vector<std::uint8_t> prefix_packed;
    std::vector<std::int32_t> prefix_correction;
    std::vector<float> prefix_scale, prefix_code, prefix_rest, prefix_tail;
    std::vector<std::uint8_t> packed;
    std::vector<std::int32_t> correction, index;
    std::vector<float> offset, scale, code, rest, gap;
  };
  Pack pack(const std::vector<std::int32_t>& which, int n_threads) const;

 private:
  void set_prefix(std::size_t j, const float* shifted, const PrincipalAxes& axes);
  void pack_prefix(Pack& pack, std::size_t to) const;
  std::size_t n_, d_, bytes_ = 0;
  bool int8_ = false, is_narrow_ = false;
  double unit_ = 0;
  std::vector<float> shift_;
  std::vector<double> exact_;
  std::vector<float> narrow_;       // the same in float32, which is_narrow_ if that holds them all
  std::vector<std::uint8_t> fits_;  // whether it holds center j
  std::vector<std::uint8_t> codes_;
  std::vector<CodeInfo> info_;
  std::vector<std::int32_t> correction_;
  std::vector<double> square_;    // of the shifted center, rounded to float64
  std::size_t prefix_bytes_ = 0;  // of the codes along the axes
  std::vector<float> projected_;  // n x prefix_bytes_
  std::vector<std::uint8_t> prefix_codes_;
  std::vector<PrefixRow> prefix_info_;
  std::vector<std::int32_t> prefix_correction_;
  double length(std::size_t j) const;  // at least the square's root
};

}  // namespace pyids
