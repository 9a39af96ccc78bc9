// Forward pass: for each row, the sum of exponentials over its negatives.
#pragma once

#include "nt_xent/tile.h"

namespace fastssl {
namespace nt_xent {
namespace {

// Adds `sum` exponentials relative to `peak` to a row's running total.
template <typename T>
inline void merge(const Pass<T>& pass, int64_t row, double peak, double sum) {
  const double before = pass.peak[row];
  if (before == peak) {
    pass.sum[row] += sum;
  } else if (before > peak) {
    pass.sum[row] += sum * __builtin_exp2(peak - before);
  } else {
    pass.sum[row] = pass.sum[row] * __builtin_exp2(before - peak) + sum;
    pass.peak[row] = peak;
  }
}

// Row sums and column sums of 2^(t - bound).
template <typename T>
void forward_bounded(const Pass<T>& pass, int64_t block_i, int64_t block_j, T* scratch) {
  const int64_t first_i = block_i * pass.block, first_j = block_j * pass.block;
  T* row_sums = scratch;  // [block] vectors
  T* strip = scratch + pass.block * kLanes<T>;
  for (int64_t x = 0; x < pass.block * kLanes<T>; ++x) row_sums[x] = 0;
  for (int64_t j = 0; j < pass.block && first_j + j < pass.rows; j += kNr<T>) {
    const int64_t rows = exponents<true>(pass, block_i, first_j + j, strip, kNr<T>);
    Vec<T> column_sum[kNv] = {};
    for (int64_t i = 0; i < rows; i += kGroupRows) {
      Group<T> x;
      load_group(x, strip + i * kNr<T>, kNr<T>);
      exp2_in_range<T>(x);
#pragma GCC unroll 8
      for (int r = 0; r < kGroupRows; ++r) {
        T* to = row_sums + (i + r) * kLanes<T>;
        Vec<T> row = load<T>(to);
#pragma GCC unroll 2
        for (int c = 0; c < kNv; ++c) {
          row += x[r * kNv + c];
          column_sum[c] += x[r * kNv + c];
        }
        store<T>(to, row);
      }
    }
    for (int c = 0; c < kNr<T>; ++c) {
      pass.sum[first_j + j + c] += double(column_sum[c / kLanes<T>][c % kLanes<T>]);
    }
  }
  for (int64_t i = 0; i < pass.block; ++i) {
    double total = 0;
    for (int l = 0; l < kLanes<T>; ++l) total += double(row_sums[i * kLanes<T> + l]);
    pass.sum[first_i + i] += total;
  }
}

// One step of a streaming sum of exponentials, each lane for itself.
template <int count, typename T>
inline void stream(Vec<T>& peak, Vec<T>& sum, const Vec<T> (&x)[count]) {
  Vec<T> e[count + 1], top = peak;
#pragma GCC unroll 16
  for (int n = 0; n < count; ++n) top = top < x[n] ? x[n] : top;
  e[count] = peak - top;
#pragma GCC unroll 16
  for (int n = 0; n < count; ++n) e[n] = x[n] - top;
  exp2_or_zero<T>(e);
  sum *= e[count];
#pragma GCC unroll 16
  for (int n = 0; n < count; ++n) sum += e[n];
  peak = top;
}

// The same for any range of similarities: rows and columns keep their own running maxima.
template <typename T>
void forward_streaming(const Pass<T>& pass, int64_t block_i, int64_t block_j, T* scratch) {
  const int64_t first_i = block_i * pass.block, first_j = block_j * pass.block;
  T* row_peaks = scratch;
  T* row_sums = row_peaks + pass.block * kLanes<T>;
  T* strip = row_sums + pass.block * kLanes<T>;
  for (int64_t x = 0; x < pass.block * kLanes<T>; ++x) {
    row_peaks[x] = kNever<false, T>;
    row_sums[x] = 0;
  }
  for (int64_t j = 0; j < pass.block && first_j + j < pass.rows; j += kNr<T>) {
    const int64_t rows = exponents<false>(pass, block_i, first_j + j, strip, kNr<T>);
    Vec<T> column_peak[kNv], column_sum[kNv];
    for (int c = 0; c < kNv; ++c) {
      column_peak[c] = broadcast<T>(kNever<false, T>);
      column_sum[c] = Vec<T>{};
    }
    for (int64_t i = 0; i < rows; i += kMr) {
      const T* tile = strip + i * kNr<T>;
      for (int r = 0; r < kMr; ++r) {
        Vec<T> row[kNv];
        for (int c = 0; c < kNv; ++c) row[c] = load<T>(tile + r * kNr<T> + c * kLanes<T>);
        T* peak_at = row_peaks + (i + r) * kLanes<T>;
        T* sum_at = row_sums + (i + r) * kLanes<T>;
        Vec<T> peak = load<T>(peak_at), sum = load<T>(sum_at);
        stream<kNv, T>(peak, sum, row);
        store<T>(peak_at, peak);
        store<T>(sum_at, sum);
      }
      for (int c = 0; c < kNv; ++c) {
        Vec<T> column[kMr];
        for (int r = 0; r < kMr; ++r) column[r] = load<T>(tile + r * kNr<T> + c * kLanes<T>);
        stream<kMr, T>(column_peak[c], column_sum[c], column);
      }
    }
    for (int c = 0; c < kNr<T>; ++c) {
      merge<T>(pass, first_j + j + c, double(column_peak[c / kLanes<T>][c % kLanes<T>]),
               double(column_sum[c / kLanes<T>][c % kLanes<T>]));
    }
  }
  for (int64_t i = 0; i < pass.block; ++i) {
    for (int l = 0; l < kLanes<T>; ++l) {
      const int64_t lane = i * kLanes<T> + l;
      merge<T>(pass, first_i + i, double(row_peaks[lane]), double(row_sums[lane]));
    }
  }
}

template <typename T>
void forward(const Pass<T>& pass, int64_t block_i, int64_t block_j, T* scratch) {
  if (pass.bounded) {
    forward_bounded(pass, block_i, block_j, scratch);
  } else {
    forward_streaming(pass, block_i, block_j, scratch);
  }
}

// t_ip of the block's rows, summed in the order in which a tile sums: where the similarities of a
// row are equal, their differences shall be zero.
template <typename T>
void positives(const Pass<T>& pass, int64_t block, T* out) {
  constexpr int count = 8;  // chains of additions that go on at the same time
  const int64_t first = block * pass.block;
  for (int64_t i = 0; i < pass.block; i += count) {
    const T *x[count], *y[count];
    T dot[count];
    for (int n = 0; n < count; ++n) {
      const int64_t at = i + n < pass.block ? first + i + n : first;
      const int64_t row = at < pass.rows ? at : 0, partner = (row + pass.half) % pass.rows;
      x[n] = slab_of(pass, pass.slabs, row / pass.block) + row % pass.block * kNr<T>;
      y[n] = slab_of(pass, pass.slabs, partner / pass.block) + partner % pass.block * kNr<T>;
      dot[n] = 0;
    }
    for (int64_t k = 0; k < pass.depth; ++k) {
      const int64_t at = k / kNr<T> * kNr<T> * pass.block + k % kNr<T>;
#pragma GCC unroll 8
      for (int n = 0; n < count; ++n) dot[n] += x[n][at] * y[n][at];
    }
    for (int n = 0; n < count && i + n < pass.block; ++n) out[i + n] = dot[n] * pass.scale;
  }
}

}  // namespace
}  // namespace nt_xent
}  // namespace fastssl
