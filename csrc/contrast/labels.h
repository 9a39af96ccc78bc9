// Forward pass where labels tell the positives.
#pragma once

#include "contrast/forward.h"
#include "contrast/softplus.h"

namespace fastssl {
namespace contrast {
namespace {

// What a strip's positives add up to, for its rows (lanes in memory) and its columns.
template <typename T, int count>
struct Sums {
  T* rows[count];  // [block] vectors each
  Vec<T> columns[count][kNv];

  Sums(T*& scratch, int64_t block) {
    for (int s = 0; s < count; ++s) {
      rows[s] = scratch;
      scratch += block * kLanes<T>;
      clear_rows(rows[s], block * kLanes<T>);
    }
  }

  void start_strip() {
    for (int s = 0; s < count; ++s) {
      for (int c = 0; c < kNv; ++c) columns[s][c] = Vec<T>{};
    }
  }

  // What the vectors of row `i` add up to, for the row.
  void add_row(int s, int64_t i, Vec<T> sum) {
    T* to = rows[s] + i * kLanes<T>;
    store<T>(to, load<T>(to) + sum);
  }
};

// Negatives' and positives' sums of 2^(t - bound), positives' total of t, and their count.
template <typename T>
void forward_labels_bounded(const Pass<T>& pass, const Meeting<T>& m, T* scratch) {
  const Side<T>&x = *pass.x, &y = *pass.y;
  Sums<T, 4> sums(scratch, x.block);
  T* strip = scratch;
  for (int64_t j = 0; j < m.columns; j += kNr<T>) {
    const int64_t rows = candidates<true>(pass, m, j, strip, kNr<T>);
    T* kept = kept_strip(pass, m, j);
    Mask<T> labels[kNv];
    load_labels<T>(labels, y.labels + m.first_y + j);
    sums.start_strip();
    for (int64_t i = 0; i < rows; i += kGroupRows) {
      Group<T> t, e;
      load_group(t, strip + i * kNr<T>, kNr<T>);
      for (int n = 0; n < kGroupRows * kNv; ++n) e[n] = t[n];
      exp2_in_range<T>(e);
#pragma GCC unroll 4
      for (int r = 0; r < kGroupRows; ++r) {
        Vec<T> row[4] = {};
#pragma GCC unroll 2
        for (int c = 0; c < kNv; ++c) {
          const int n = r * kNv + c;
          const Mask<T> positive =
              (labels[c] == x.labels[m.first_x + i + r]) & is_real<true, T>(t[n]);
          const Vec<T> of_positive = chosen<T>(positive, e[n]);
          if (kept != nullptr) {
            store<T>(kept + (i + r) * pass.kept_pitch + c * kLanes<T>, e[n]);
          }
          const Vec<T> found[4] = {e[n] - of_positive, of_positive,
                                   chosen<T>(positive, t[n] + pass.bound),
                                   chosen<T>(positive, broadcast<T>(1))};
#pragma GCC unroll 4
          for (int s = 0; s < 4; ++s) {
            row[s] += found[s];
            sums.columns[s][c] += found[s];
          }
        }
#pragma GCC unroll 4
        for (int s = 0; s < 4; ++s) sums.add_row(s, i + r, row[s]);
      }
    }
    if (columns_too(pass)) {
      double* to[] = {y.sum, y.positive_sum, y.positive_total, y.count};
      for (int s = 0; s < 4; ++s) add_columns<T>(sums.columns[s], to[s] + m.first_y + j);
    }
  }
  double* to[] = {x.sum, x.positive_sum, x.positive_total, x.count};
  for (int s = 0; s < 4; ++s) add_rows(sums.rows[s], x.block, to[s] + m.first_x);
}

// The same for any range of logits.
template <typename T>
void forward_labels_streaming(const Pass<T>& pass, const Meeting<T>& m, T* scratch) {
  const Side<T>&x = *pass.x, &y = *pass.y;
  const int64_t size = x.block * kLanes<T>;
  Streams<T> negative{scratch, scratch + size, {}, {}};
  Streams<T> positive{scratch + 2 * size, scratch + 3 * size, {}, {}};
  negative.clear(x.block);
  positive.clear(x.block);
  scratch += 4 * size;
  Sums<T, 2> sums(scratch, x.block);
  T* strip = scratch;
  const Vec<T> never = broadcast<T>(kNever<false, T>);
  for (int64_t j = 0; j < m.columns; j += kNr<T>) {
    const int64_t rows = candidates<false>(pass, m, j, strip, kNr<T>);
    Mask<T> labels[kNv];
    load_labels<T>(labels, y.labels + m.first_y + j);
    const auto equal = [&](int64_t i, int c) { return labels[c] == x.labels[m.first_x + i]; };
    negative.strip(strip, rows,
                   [&](Vec<T> t, int64_t i, int c) { return equal(i, c) ? never : t; });
    positive.strip(strip, rows,
                   [&](Vec<T> t, int64_t i, int c) { return equal(i, c) ? t : never; });
    sums.start_strip();
    for (int64_t i = 0; i < rows; ++i) {
      for (int c = 0; c < kNv; ++c) {
        const Vec<T> t = load<T>(strip + i * kNr<T> + c * kLanes<T>);
        const Mask<T> is = equal(i, c) & is_real<false, T>(t);
        const Vec<T> found[2] = {chosen<T>(is, t), chosen<T>(is, broadcast<T>(1))};
        for (int s = 0; s < 2; ++s) {
          sums.add_row(s, i, found[s]);
          sums.columns[s][c] += found[s];
        }
      }
    }
    if (columns_too(pass)) {
      const int64_t at = m.first_y + j;
      negative.add_columns(y.peak + at, y.sum + at);
      positive.add_columns(y.positive_peak + at, y.positive_sum + at);
      add_columns<T>(sums.columns[0], y.positive_total + at);
      add_columns<T>(sums.columns[1], y.count + at);
    }
  }
  negative.add_rows(x.block, x.peak + m.first_x, x.sum + m.first_x);
  positive.add_rows(x.block, x.positive_peak + m.first_x, x.positive_sum + m.first_x);
  add_rows(sums.rows[0], x.block, x.positive_total + m.first_x);
  add_rows(sums.rows[1], x.block, x.count + m.first_x);
}

// Whether a strip has two rows of one label. Where labels are many, most strips have none, and
// their products need not be taken.
template <typename T>
inline bool has_positives(const Pass<T>& pass, const Meeting<T>& m, const Mask<T> (&labels)[kNv]) {
  Mask<T> any = {};
  for (int64_t i = 0; i < m.rows; ++i) {
    for (int c = 0; c < kNv; ++c) any |= labels[c] == pass.x->labels[m.first_x + i];
  }
  for (int l = 0; l < kLanes<T>; ++l) {
    if (any[l] != 0) return true;
  }
  return false;
}

// kPaired: with every anchor's lse over negatives known, the losses ln(1 + 2^(lse - t)) of its
// positive pairs, their sigmoids, their count.
template <typename T>
void pairs(const Pass<T>& pass, int64_t block_x, int64_t block_y, T* scratch) {
  const Meeting<T> m(pass, block_x, block_y);
  const Side<T>&x = *pass.x, &y = *pass.y;
  Sums<T, 3> sums(scratch, x.block);
  T* strip = scratch;
  for (int64_t j = 0; j < m.columns; j += kNr<T>) {
    Mask<T> labels[kNv];
    load_labels<T>(labels, y.labels + m.first_y + j);
    if (!has_positives(pass, m, labels)) continue;
    const int64_t rows = exponents<false>(pass, m, j, strip, kNr<T>);
    sums.start_strip();
    for (int64_t i = 0; i < rows; ++i) {
      for (int c = 0; c < kNv; ++c) {
        const Vec<T> t = load<T>(strip + i * kNr<T> + c * kLanes<T>);
        const Mask<T> is = (labels[c] == x.labels[m.first_x + i]) & is_real<false, T>(t);
        const Vec<T> of_column =
            columns_too(pass) ? load<T>(y.lse + m.first_y + j + c * kLanes<T>) : Vec<T>{};
        const Vec<T> odds[2] = {broadcast<T>(x.lse[m.first_x + i]) - t, of_column - t};
        Vec<T> loss[2], share[2];
        softplus_and_sigmoid<T>(odds, loss, share);
        const Vec<T> one = broadcast<T>(1);
        const Vec<T> of_row[3] = {loss[0], share[0], one},
                     of_its_column[3] = {loss[1], share[1], one};
        for (int s = 0; s < 3; ++s) {
          sums.add_row(s, i, chosen<T>(is, of_row[s]));
          sums.columns[s][c] += chosen<T>(is, of_its_column[s]);
        }
      }
    }
    if (columns_too(pass)) {
      double* to[] = {y.positive_total, y.positive_sum, y.count};
      for (int s = 0; s < 3; ++s) add_columns<T>(sums.columns[s], to[s] + m.first_y + j);
    }
  }
  double* to[] = {x.positive_total, x.positive_sum, x.count};
  for (int s = 0; s < 3; ++s) add_rows(sums.rows[s], x.block, to[s] + m.first_x);
}

}  // namespace
}  // namespace contrast
}  // namespace fastssl
