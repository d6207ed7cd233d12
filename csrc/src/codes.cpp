#include "pyids/codes.hpp"

#include <algorithm>
#include <cstring>

#include "pyids/distance.hpp"
#include "pyids/parallel.hpp"
#include "pyids/prefix.hpp"

namespace pyids {

namespace {

std::size_t round_up_to(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace

Coding::Coding(const Rows& rows, bool int8, double reach)
    : reach_(reach),
      int8_(int8),
      bytes_(int8 ? round_up_to(rows.n_cols(), kCodeAlignment) : rows.n_cols() * sizeof(float)) {
  // The mean of a spread-out thousand of rows: any point does, a near one bounds better.
  const std::size_t d = rows.n_cols();
  const std::size_t step = std::max<std::size_t>(1, rows.size() / 1024);
  std::vector<double> row(d), mean(d);
  int exponent = 0;
  if (reach > 0) std::frexp(reach, &exponent);
  // Powers that float32 holds, where the rows are no wider. Else such that float64 holds squares,
  // and that where it rounds distances coarsely they are below kTiny.
  const bool wide = rows.scalar() == Scalar::f64;
  exponent = std::clamp(exponent, wide ? -440 : -100, wide ? 500 : 100);
  unit_ = std::ldexp(1.0, -exponent);
  std::size_t count = 0;
  for (std::size_t i = 0; i < rows.size(); i += step, ++count) {
    rows.load(i, row.data());
    for (std::size_t t = 0; t < d; ++t) mean[t] += row[t];
  }
  for (double v : mean) {
    v *= unit_ / static_cast<double>(std::max<std::size_t>(1, count));
    shift_.push_back(static_cast<float>(v));
  }
}

RowCode encode_row(const Coding& coding, const Rows& rows, std::size_t i, float* scratch,
                   std::uint8_t* code) {
  const std::size_t d = coding.n_cols();
  const int levels = kernels().row_levels;
  float* values = coding.int8() ? scratch : reinterpret_cast<float*>(code);
  rows.load_centered(i, coding.unit(), coding.shift().data(), values);
  const auto square = static_cast<float>(kernels().square_f32(values, d));
  if (coding.int8()) {
    return {kernels().encode(values, d, coding.bytes(), levels, levels + 1, code), square};
  }
  const float length = round_up(std::sqrt(square + kTiny) * (1 + kSquareError));
  return {{1.0f, length, length * 0x1.01p-24f}, square};
}

ScanRow scan_row(const RowCode& code, std::size_t n_cols, float best, float margin, float floor) {
  const double round = 2.1 * canonical_error(n_cols) * code.square * (1 + 2 * kSquareError);
  return {code.info.unit, code.info.length, code.info.rest, best, margin, floor, round_up(round)};
}

void group_by_row(const Hit* hits, std::size_t n_hits, std::size_t n_rows, Hit* sorted,
                  std::uint32_t (&starts)[kScanRows + 1]) {
  std::fill(starts, starts + n_rows + 1, 0u);
  for (std::size_t h = 0; h < n_hits; ++h) ++starts[hits[h].row + 1];
  for (std::size_t i = 0; i < n_rows; ++i) starts[i + 1] += starts[i];
  std::uint32_t next[kScanRows];
  std::copy(starts, starts + n_rows, next);
  for (std::size_t h = 0; h < n_hits; ++h) sorted[next[hits[h].row]++] = hits[h];
}

void CenterTable::set(const double* values, const Coding& coding, int n_threads,
                      const PrincipalAxes* axes) {
  const std::size_t prefix_bytes = axes == nullptr ? 0 : axes->size();
  const bool same_coding = !exact_.empty() && int8_ == coding.int8() && unit_ == coding.unit() &&
                           shift_ == coding.shift() && prefix_bytes_ == prefix_bytes;
  prefix_bytes_ = prefix_bytes;
  projected_.resize(n_ * prefix_bytes);
  prefix_codes_.resize(n_ * prefix_bytes);
  prefix_info_.resize(axes == nullptr ? 0 : n_);
  prefix_correction_.resize(axes == nullptr ? 0 : n_);
  int8_ = coding.int8();
  bytes_ = coding.bytes();
  unit_ = coding.unit();
  shift_ = coding.shift();
  exact_.resize(n_ * d_);
  narrow_.resize(n_ * d_);
  fits_.resize(n_);
  codes_.resize(n_ * bytes_);
  info_.resize(n_);
  square_.resize(n_);
  correction_.resize(n_);
  parallel_blocks((n_ + 31) / 32, n_threads, [&](std::size_t block, int) {
    std::vector<float> shifted(d_);
    std::vector<double> exact(d_), decoded(d_);
    const std::vector<double> origin(d_);
    for (std::size_t j = block * 32; j < std::min(n_, block * 32 + 32); ++j) {
      const double* from = values + j * d_;
      const std::size_t row_bytes = d_ * sizeof(double);
      if (same_coding && std::memcmp(exact_.data() + j * d_, from, row_bytes) == 0) continue;
      std::memcpy(exact_.data() + j * d_, from, row_bytes);
      bool same = true;
      for (std::size_t t = 0; t < d_; ++t) {
        narrow_[j * d_ + t] = static_cast<float>(from[t]);
        same &= static_cast<double>(narrow_[j * d_ + t]) == from[t];
      }
      fits_[j] = same;
      kernels().center(from, Scalar::f64, d_, coding.unit(), coding.shift().data(), shifted.data());
      for (std::size_t t = 0; t < d_; ++t) {
        exact[t] = from[t] * coding.unit() - static_cast<double>(coding.shift()[t]);
      }
      square_[j] = squared_distance(exact.data(), origin.data(), d_);
      std::uint8_t* code = codes_.data() + j * bytes_;
      if (!int8_) {
        // The center's own rounding, that of the products, of P + S and of L.
        std::memcpy(code, shifted.data(), d_ * sizeof(float));
        info_[j] = {1.0f, round_up(length(j)), round_up(length(j) * dot_error(d_))};
        continue;
      }
      if (axes != nullptr) set_prefix(j, shifted.data(), *axes);
      info_[j] = kernels().encode(shifted.data(), d_, bytes_, 127, 0, code);
      std::int32_t sum = 0;
      for (std::size_t t = 0; t < bytes_; ++t) sum += static_cast<std::int8_t>(code[t]);
      // Against the center itself, not as float32 holds it: there are few of them.
      for (std::size_t t = 0; t < d_; ++t) {
        decoded[t] = static_cast<double>(info_[j].unit) * static_cast<std::int8_t>(code[t]);
      }
      const double rest = squared_distance(exact.data(), decoded.data(), d_);
      correction_[j] = -(kernels().row_levels + 1) * sum;
      info_[j].rest =
          round_up(std::sqrt(rest) * (1 + 0x1p-20) + kIntRounding * info_[j].length + 0x1p-60);
    }
  });
  is_narrow_ = std::find(fits_.begin(), fits_.end(), 0) == fits_.end();
}

void CenterTable::set_prefix(std::size_t j, const float* shifted, const PrincipalAxes& axes) {
  float* projected = projected_.data() + j * prefix_bytes_;
  std::uint8_t* code = prefix_codes_.data() + j * prefix_bytes_;
  axes.project(shifted, 1, projected);
  prefix_info_[j] = axes.encode(projected, square_[j], 127, 0, code);
  std::int32_t sum = 0;
  for (std::size_t t = 0; t < prefix_bytes_; ++t) sum += static_cast<std::int8_t>(code[t]);
  prefix_correction_[j] = -(kernels().row_levels + 1) * sum;
}

// As below, but for the tail, which is a bound already.
void CenterTable::pack_prefix(Pack& pack, std::size_t to) const {
  const auto j = static_cast<std::size_t>(pack.index[to]);
  const PrefixRow& info = prefix_info_[j];
  const float* projected = projected_.data() + j * prefix_bytes_;
  const double square = kernels().square_f32(projected, prefix_bytes_) * (1 + 2 * kSquareError);
  constexpr double room = 2 * (1 + 0x1p-20);
  pack.prefix_correction[to] = prefix_correction_[j];
  pack.prefix_scale[to] = 2 * info.scale;
  pack.prefix_code[to] =
      round_up(room * (static_cast<double>(info.rest) + kIntRounding * info.code));
  pack.prefix_rest[to] = round_up(room * std::sqrt(square + kTiny));
  pack.prefix_tail[to] = round_up(room * info.tail);
  const std::uint8_t* from = prefix_codes_.data() + j * prefix_bytes_;
  std::uint8_t* base = pack.prefix_packed.data() + to / 16 * 16 * prefix_bytes_ + to % 16 * 4;
  for (std::size_t t = 0; t < prefix_bytes_; t += 4) std::memcpy(base + 16 * t, from + t, 4);
}

double CenterTable::length(std::size_t j) const {
  return std::sqrt(square_[j] + kTiny) * (1 + kDistanceError);
}

float CenterTable::upper(const std::uint8_t* code, const RowCode& row, std::int32_t j) const {
  const auto at = static_cast<std::size_t>(j);
  const auto* center = reinterpret_cast<const std::int8_t*>(codes_.data() + at * bytes_);
  const double dot = static_cast<double>(kernels().dot_i8(code, center, bytes_) + correction_[at]) *
                     row.info.unit * info_[at].unit;
  const double slack = static_cast<double>(row.info.length) * info_[at].rest +
                       static_cast<double>(row.info.rest) * length(at);
  const double distance = square_[at] - 2 * (dot - slack);
  return round_up(distance + kDistanceError * (square_[at] + std::fabs(dot) + slack + row.square) +
                  kTiny);
}

CenterTable::Pack CenterTable::pack(const std::vector<std::int32_t>& which, int n_threads) const {
  Pack pack;
  const std::size_t n = round_up_to(which.size(), 16);
  const std::size_t unit = int8_ ? 4 : sizeof(float);  // bytes of a code that stay together
  pack.n = which.size();
  pack.bytes = bytes_;
  pack.packed.assign(n * bytes_, 0);
  pack.offset.assign(n, kInfinity);  // the padding can never win
  pack.scale.assign(n, 0.0f);
  pack.code.assign(n, 0.0f);
  pack.rest.assign(n, 0.0f);
  pack.gap.assign(n, 0.0f);
  // Only a row that is no number reports the padding: as any center, which rules out nothing.
  pack.index.assign(n, which.empty() ? -1 : which[0]);
  pack.correction.assign(n, 0);
  pack.prefix_bytes = prefix_bytes_;
  pack.codes = reinterpret_cast<const std::int8_t*>(codes_.data());
  if (pack.has_prefix()) {
    pack.prefix_packed.assign(n * prefix_bytes_, 0);
    pack.prefix_correction.assign(n, 0);
    for (auto* values :
         {&pack.prefix_scale, &pack.prefix_code, &pack.prefix_rest, &pack.prefix_tail}) {
      values->assign(n, 0.0f);
    }
  }
  parallel_blocks(n / 16, n_threads, [&](std::size_t group, int) {
    const std::size_t filled = std::min<std::size_t>(16, which.size() - 16 * group);
    for (std::size_t lane = 0; lane < filled; ++lane) {
      const std::size_t to = 16 * group + lane;
      const auto j = static_cast<std::size_t>(which[to]);
      pack.index[to] = which[to];
      pack.correction[to] = correction_[j];
      // Rounding to float32 takes one of the units; the proof in simd.hpp needs another.
      pack.offset[to] = static_cast<float>(square_[j] * (1 - 2.5 * kUnit) - 2 * kTiny);
      const double offset = pack.offset[to];
      pack.gap[to] =
          round_up((square_[j] - offset + kUnit * std::fabs(offset)) * (1 + 0x1p-8) + 2 * kTiny);
      pack.scale[to] = 2 * info_[j].unit;
      pack.code[to] = round_up(2 * info_[j].rest * (1 + 0x1p-20));
      pack.rest[to] = round_up(2 * length(j) * (1 + 0x1p-20));
      const std::uint8_t* from = codes_.data() + j * bytes_;
      std::uint8_t* base = pack.packed.data() + 16 * group * bytes_ + unit * lane;
      for (std::size_t t = 0; t < bytes_; t += unit) std::memcpy(base + 16 * t, from + t, unit);
      if (pack.has_prefix()) pack_prefix(pack, to);
    }
  });
  return pack;
}

}  // namespace pyids
