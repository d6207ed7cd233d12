// The hot loop of the sampler, compiled once an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pyids/simd.hpp"

namespace pyids {

struct SamplingKernels {
  // The rows whose uniform number may be at most their limit.
  //
  // Row i has the id ids[i], or first_id + i if `ids` is null. Writes i and its 64 random bits
  // (stream `sampling`) to rows and bits, in order, where floor(bits / 2^32) <= limits[i]; returns
  // how many. rows and bits have room for n + filter_slack.
  std::size_t (*filter_rows)(std::uint64_t seed, const std::int64_t* ids, std::int64_t first_id,
                             const double* limits, std::size_t n, std::uint32_t* rows,
                             std::uint64_t* bits);
  // limits[i] = weights[i] * bounds[labels[i]]. Returns whether all labels lie in [0, n_clusters)
  // and all weights are finite and not negative; if not, the limits mean nothing.
  bool (*limit_f32)(const std::int32_t* labels, const float* weights, std::size_t n,
                    std::size_t n_clusters, const double* bounds, double* limits);
  bool (*limit_f64)(const std::int32_t* labels, const double* weights, std::size_t n,
                    std::size_t n_clusters, const double* bounds, double* limits);
  // The keys log(weights[i]) - log(E_i), E_i the exponential number made of bits[i]. If
  // log_weights, the weights are logarithms already.
  void (*make_keys)(const std::uint64_t* bits, const double* weights, bool log_weights,
                    std::size_t n, double* high, double* low);
};

constexpr std::size_t filter_slack = 8;

// Every level returns the same bits.
const SamplingKernels& sampling_portable();
const SamplingKernels& sampling_avx2();
const SamplingKernels& sampling_avx512();
const SamplingKernels& sampling_kernels(SimdLevel level);

}  // namespace pyids
