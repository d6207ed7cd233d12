#include "pyids/codes.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "pyids/distance.hpp"
#include "pyids/parallel.hpp"

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
  return {{1.0f, length, length * 0x1p-22f}, square};
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

void CentreTable::set(const double* values, const Coding& coding, int n_threads) {
  int8_ = coding.int8();
  bytes_ = coding.bytes();
  exact_.assign(values, values + n_ * d_);
  narrow_.resize(n_ * d_);
  codes_.resize(n_ * bytes_);
  info_.resize(n_);
  length_.resize(n_);
  correction_.resize(n_);
  std::atomic<bool> fits{true};
  parallel_blocks((n_ + 31) / 32, n_threads, [&](std::size_t block, int) {
    std::vector<float> shifted(d_);
    for (std::size_t j = block * 32; j < std::min(n_, block * 32 + 32); ++j) {
      const double* from = values + j * d_;
      bool same = true;
      for (std::size_t t = 0; t < d_; ++t) {
        narrow_[j * d_ + t] = static_cast<float>(from[t]);
        same &= static_cast<double>(narrow_[j * d_ + t]) == from[t];
      }
      if (!same) fits = false;
      kernels().center(from, Scalar::f64, d_, coding.unit(), coding.shift().data(), shifted.data());
      length_[j] = std::sqrt(kernels().square_f32(shifted.data(), d_) + kTiny) * (1 + kSquareError);
      std::uint8_t* code = codes_.data() + j * bytes_;
      if (!int8_) {
        std::memcpy(code, shifted.data(), d_ * sizeof(float));
        info_[j] = {1.0f, round_up(length_[j]), round_up(length_[j] * dot_error(d_))};
        continue;
      }
      info_[j] = kernels().encode(shifted.data(), d_, bytes_, 127, 0, code);
      std::int32_t sum = 0;
      for (std::size_t t = 0; t < bytes_; ++t) sum += static_cast<std::int8_t>(code[t]);
      correction_[j] = -(kernels().row_levels + 1) * sum;
      info_[j].rest = round_up(info_[j].rest + kRounding * info_[j].length);
    }
  });
  if (!fits) narrow_.clear();
}

float CentreTable::upper(const std::uint8_t* code, const CodeInfo& row, std::int32_t j) const {
  const auto at = static_cast<std::size_t>(j);
  const auto* centre = reinterpret_cast<const std::int8_t*>(codes_.data() + at * bytes_);
  const double dot = static_cast<double>(kernels().dot_i8(code, centre, bytes_) + correction_[at]) *
                     row.unit * info_[at].unit;
  const double slack = static_cast<double>(row.length) * info_[at].rest +
                       static_cast<double>(row.rest) * length_[at];
  const double square = length_[at] * length_[at];
  return round_up(square - 2 * (dot - slack) + kRounding * (square + std::fabs(dot)) + kTiny);
}

CentreTable::Pack CentreTable::pack(const std::vector<std::int32_t>& which, int n_threads) const {
  Pack pack;
  const std::size_t n = round_up_to(which.size(), 16);
  const std::size_t unit = int8_ ? 4 : sizeof(float);  // bytes of a code that stay together
  pack.packed.assign(n * bytes_, 0);
  pack.offset.assign(n, kInfinity);  // the padding can never win
  pack.scale.assign(n, 0.0f);
  pack.code.assign(n, 0.0f);
  pack.rest.assign(n, 0.0f);
  // Only a row that is no number reports the padding: as any centre, which rules out nothing.
  pack.index.assign(n, which.empty() ? -1 : which[0]);
  pack.correction.assign(n, 0);
  parallel_blocks(n / 16, n_threads, [&](std::size_t group, int) {
    const std::size_t filled = std::min<std::size_t>(16, which.size() - 16 * group);
    for (std::size_t lane = 0; lane < filled; ++lane) {
      const std::size_t to = 16 * group + lane;
      const auto j = static_cast<std::size_t>(which[to]);
      pack.index[to] = which[to];
      pack.correction[to] = correction_[j];
      // The length was rounded up by kSquareError: a square surely below the true one.
      pack.offset[to] = round_down(length_[j] * length_[j] * (1 - 4 * kSquareError) - 4 * kTiny);
      pack.scale[to] = 2 * info_[j].unit;
      pack.code[to] = 2 * info_[j].rest;
      pack.rest[to] = round_up(2 * length_[j]);
      const std::uint8_t* from = codes_.data() + j * bytes_;
      std::uint8_t* base = pack.packed.data() + 16 * group * bytes_ + unit * lane;
      for (std::size_t t = 0; t < bytes_; t += unit) std::memcpy(base + 16 * t, from + t, unit);
    }
  });
  return pack;
}

}  // namespace pyids
