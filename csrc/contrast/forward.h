// Forward pass: for each row, and each column where columns are anchors too, the sum of
// exponentials over its negatives.
#pragma once

#include "contrast/metrics.h"

namespace fastssl {
namespace contrast {
namespace {

// Adds `sum` exponentials relative to `peak` to a running total.
inline void merge(double& total_peak, double& total, double peak, double sum) {
  if (total_peak == peak) {
    total += sum;
  } else if (total_peak > peak) {
    total += sum * __builtin_exp2(peak - total_peak);
  } else {
    total = total * __builtin_exp2(total_peak - peak) + sum;
    total_peak = peak;
  }
}

template <typename T>
inline bool columns_too(const Pass<T>& pass) {
  return pass.symmetric || pass.columns;
}

// A strip of exponents of what windows leave, tallied where metrics are asked for; with either,
// logits stay as they are (not bounded), so that equal ones compare as equal.
template <bool bounded, typename T>
inline int64_t candidates(const Pass<T>& pass, const Meeting<T>& m, int64_t j, T* strip,
                          int64_t pitch) {
  const int64_t rows = exponents<bounded>(pass, m, j, strip, pitch);
  if (bounded) return rows;
  if (pass.x->low != nullptr) {
    drop_outside<T>(pass.x->low + m.first_x, pass.x->high + m.first_x, rows, strip, pitch);
  }
  if (m.tally != nullptr) tally_strip(pass, m, j, strip, pitch, m.tally);
  return rows;
}

template <typename T>
inline void clear_rows(T* x, int64_t count, T value = 0) {
  for (int64_t i = 0; i < count; ++i) x[i] = value;
}

// Row by row, the lanes of a block's sums to the side's totals.
template <typename T>
inline void add_rows(const T* lanes, int64_t rows, double* totals) {
  for (int64_t i = 0; i < rows; ++i) {
    double total = 0;
    for (int l = 0; l < kLanes<T>; ++l) total += double(lanes[i * kLanes<T> + l]);
    totals[i] += total;
  }
}

template <typename T>
inline void add_columns(const Vec<T> (&sums)[kNv], double* totals) {
  for (int c = 0; c < kNr<T>; ++c) totals[c] += double(sums[c / kLanes<T>][c % kLanes<T>]);
}

// Row sums and column sums of 2^(t - bound). Where `out` is not null, the exponentials stay there.
template <typename T>
void forward_bounded(const Pass<T>& pass, const Meeting<T>& m, T* scratch, T* out) {
  T* row_sums = scratch;  // [block] vectors
  T* strip = scratch + pass.x->block * kLanes<T>;
  clear_rows(row_sums, pass.x->block * kLanes<T>);
  for (int64_t j = 0; j < m.columns; j += kNr<T>) {
    T* at = out == nullptr ? strip : out + j;
    const int64_t pitch = out == nullptr ? kNr<T> : kPitch;
    const int64_t rows = candidates<true>(pass, m, j, at, pitch);
    T* kept = kept_strip(pass, m, j);
    Vec<T> column_sum[kNv] = {};
    for (int64_t i = 0; i < rows; i += kGroupRows) {
      Group<T> x;
      load_group(x, at + i * pitch, pitch);
      exp2_in_range<T>(x);
#pragma GCC unroll 8
      for (int r = 0; r < kGroupRows; ++r) {
        T* to = row_sums + (i + r) * kLanes<T>;
        Vec<T> row = load<T>(to);
#pragma GCC unroll 2
        for (int c = 0; c < kNv; ++c) {
          row += x[r * kNv + c];
          column_sum[c] += x[r * kNv + c];
          if (out != nullptr) store<T>(at + (i + r) * pitch + c * kLanes<T>, x[r * kNv + c]);
          if (kept != nullptr) {
            store<T>(kept + (i + r) * pass.kept_pitch + c * kLanes<T>, x[r * kNv + c]);
          }
        }
        store<T>(to, row);
      }
    }
    if (columns_too(pass)) add_columns<T>(column_sum, pass.y->sum + m.first_y + j);
  }
  add_rows(row_sums, pass.x->block, pass.x->sum + m.first_x);
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

// Streaming sums of a block's rows and of a strip's columns, of the elements that `keep(x, at)`
// leaves: it gets a vector and its row and vector in the strip.
template <typename T>
struct Streams {
  T *peaks, *sums;  // [block] vectors each
  Vec<T> column_peak[kNv], column_sum[kNv];

  void clear(int64_t block) {
    clear_rows(peaks, block * kLanes<T>, kNever<false, T>);
    clear_rows(sums, block * kLanes<T>);
  }

  template <class F>
  void strip(const T* x, int64_t rows, const F& keep) {
    for (int c = 0; c < kNv; ++c) {
      column_peak[c] = broadcast<T>(kNever<false, T>);
      column_sum[c] = Vec<T>{};
    }
    for (int64_t i = 0; i < rows; i += kMr) {
      const T* tile = x + i * kNr<T>;
      for (int r = 0; r < kMr; ++r) {
        Vec<T> row[kNv];
        for (int c = 0; c < kNv; ++c) {
          row[c] = keep(load<T>(tile + r * kNr<T> + c * kLanes<T>), i + r, c);
        }
        T* peak_at = peaks + (i + r) * kLanes<T>;
        T* sum_at = sums + (i + r) * kLanes<T>;
        Vec<T> peak = load<T>(peak_at), sum = load<T>(sum_at);
        stream<kNv, T>(peak, sum, row);
        store<T>(peak_at, peak);
        store<T>(sum_at, sum);
      }
      for (int c = 0; c < kNv; ++c) {
        Vec<T> column[kMr];
        for (int r = 0; r < kMr; ++r) {
          column[r] = keep(load<T>(tile + r * kNr<T> + c * kLanes<T>), i + r, c);
        }
        stream<kMr, T>(column_peak[c], column_sum[c], column);
      }
    }
  }

  void add_columns(double* peak, double* sum) const {
    for (int c = 0; c < kNr<T>; ++c) {
      merge(peak[c], sum[c], double(column_peak[c / kLanes<T>][c % kLanes<T>]),
            double(column_sum[c / kLanes<T>][c % kLanes<T>]));
    }
  }

  void add_rows(int64_t block, double* peak, double* sum) const {
    for (int64_t i = 0; i < block * kLanes<T>; ++i) {
      merge(peak[i / kLanes<T>], sum[i / kLanes<T>], double(peaks[i]), double(sums[i]));
    }
  }
};

// The same as forward_bounded for any range of logits: rows and columns keep their own maxima.
template <typename T>
void forward_streaming(const Pass<T>& pass, const Meeting<T>& m, T* scratch) {
  const int64_t block = pass.x->block;
  Streams<T> sums{scratch, scratch + block * kLanes<T>, {}, {}};
  T* strip = scratch + 2 * block * kLanes<T>;
  sums.clear(block);
  for (int64_t j = 0; j < m.columns; j += kNr<T>) {
    const int64_t rows = candidates<false>(pass, m, j, strip, kNr<T>);
    sums.strip(strip, rows, [](Vec<T> x, int64_t, int) { return x; });
    if (columns_too(pass)) {
      sums.add_columns(pass.y->peak + m.first_y + j, pass.y->sum + m.first_y + j);
    }
  }
  sums.add_rows(block, pass.x->peak + m.first_x, pass.x->sum + m.first_x);
}

// t + shift of the block's rows with their mates, summed in the order in which a tile sums: where
// the similarities of a row are equal, their differences shall be zero.
template <typename T>
void positives(const Pass<T>& pass, int64_t block, T* out) {
  constexpr int count = 8;  // chains of additions that go on at the same time
  const Side<T>&x = *pass.x, &y = *pass.y;
  const int64_t first = block * x.block;
  // Rows of y are read from slabs where there are any: k to k + kNr lie together there.
  const int64_t y_block = y.slabs != nullptr ? y.block : kNr<T>;
  const T* y_rows = y.slabs != nullptr ? y.slabs : y.panels;
  const int64_t y_depth = y.slabs != nullptr ? pass.padded_depth : pass.depth;
  const int64_t run = y.slabs != nullptr ? kNr<T> : 1;  // consecutive k
  const int64_t step = y.slabs != nullptr ? y.block * kNr<T> : kNr<T>;
  for (int64_t i = 0; i < x.block; i += count) {
    const T *a[count], *b[count];
    T dot[count];
    for (int n = 0; n < count; ++n) {
      const int64_t at = i + n < x.block ? first + i + n : first;
      const int64_t row = at < x.rows ? at : first;
      const int64_t mate = x.mate[row] < 0 ? 0 : x.mate[row];
      a[n] = slab_of(pass, x, block) + (row - first) * kNr<T>;
      b[n] = y_rows + mate / y_block * y_block * y_depth + mate % y_block * run;
      dot[n] = 0;
    }
    for (int64_t k = 0; k < pass.depth; ++k) {
      const int64_t at = k / kNr<T> * kNr<T> * x.block + k % kNr<T>;
      const int64_t y_at = k / run * step + k % run;
#pragma GCC unroll 8
      for (int n = 0; n < count; ++n) dot[n] += a[n][at] * b[n][y_at];
    }
    for (int n = 0; n < count && i + n < x.block; ++n) out[i + n] = dot[n] * pass.scale;
  }
}

}  // namespace
}  // namespace contrast
}  // namespace fastssl
