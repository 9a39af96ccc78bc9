// What `metrics` asks of a strip besides its sums: counts, means, extremes. Rows alone are anchors.
#pragma once

#include "contrast/tile.h"

namespace fastssl {
namespace contrast {
namespace {

// Lanes of a row's tally, in memory from one strip to the next.
enum TallyLane { kPeak, kSum, kDot, kRank, kTotal, kNumber, kClose, kBest, kTallyLanes };

template <typename T>
inline int64_t tally_size(int64_t block) {
  return block * kTallyLanes * kLanes<T>;
}

template <typename T>
inline void start_tally(const Pass<T>& pass, T* lanes) {
  for (int64_t i = 0; i < tally_size<T>(pass.x->block); ++i) {
    const int64_t lane = i / kLanes<T> % kTallyLanes;
    lanes[i] = lane == kPeak || lane == kBest ? kNever<false, T> : T(0);
  }
}

template <typename T>
inline Vec<T> chosen(Mask<T> where, Vec<T> x) {
  return (Vec<T>)(where & (Mask<T>)x);
}

template <typename T>
void tally_strip(const Pass<T>& pass, const Meeting<T>& m, int64_t j, const T* strip, int64_t pitch,
                 T* lanes) {
  const Side<T>&x = *pass.x, &y = *pass.y;
  Mask<T> labels[kNv] = {};
  const bool labelled = pass.kind == kLabelled || pass.kind == kPaired;
  if (labelled) load_labels<T>(labels, y.labels + m.first_y + j);
  for (int64_t i = 0; i < m.rows; ++i) {
    if (m.diagonal && j + kNr<T> - 1 <= i) break;
    T* row = lanes + i * kTallyLanes * kLanes<T>;
    Vec<T> v[kTallyLanes];
    for (int n = 0; n < kTallyLanes; ++n) v[n] = load<T>(row + n * kLanes<T>);
    const Vec<T> threshold = broadcast<T>(x.threshold[m.first_x + i]);
    for (int c = 0; c < kNv; ++c) {
      const Vec<T> t = load<T>(strip + i * pitch + c * kLanes<T>);
      const Mask<T> real = is_real<false, T>(t);
      Mask<T> positive = {};
      if (labelled) positive = real & (labels[c] == x.labels[m.first_x + i]);
      const Mask<T> negative = real & ~positive;
      const Vec<T> one = chosen<T>(negative, broadcast<T>(1));
      v[kNumber] += one;
      v[kRank] += chosen<T>(t > threshold, one);
      v[kTotal] += chosen<T>(negative, t);
      const Vec<T> top = v[kPeak] < t ? t : v[kPeak];
      const Vec<T> close = t * pass.close_scale + pass.close_shift;
      Vec<T> e[3] = {v[kPeak] - top, t - top, close < T(126) ? close : broadcast<T>(126)};
      exp2_or_zero<T>(e);
      const Vec<T> share = chosen<T>(real, e[1]);
      v[kSum] = v[kSum] * e[0] + share;
      v[kDot] = v[kDot] * e[0] + share * chosen<T>(real, t);
      v[kPeak] = top;
      v[kClose] += chosen<T>(negative, e[2]);
      const Vec<T> best = positive ? t : broadcast<T>(kNever<false, T>);
      v[kBest] = v[kBest] < best ? best : v[kBest];
    }
    for (int n = 0; n < kTallyLanes; ++n) store<T>(row + n * kLanes<T>, v[n]);
  }
}

template <typename T>
void finish_tally(const Pass<T>& pass, const Meeting<T>& m, const T* lanes) {
  for (int64_t i = 0; i < m.rows; ++i) {
    Tally& to = pass.x->tally[m.first_x + i];
    const T* row = lanes + i * kTallyLanes * kLanes<T>;
    for (int l = 0; l < kLanes<T>; ++l) {
      const auto at = [&](int n) { return double(row[n * kLanes<T> + l]); };
      const double top = to.peak < at(kPeak) ? at(kPeak) : to.peak;
      const double before = __builtin_exp2(to.peak - top), now = __builtin_exp2(at(kPeak) - top);
      to.sum = to.sum * before + at(kSum) * now;
      to.dot = to.dot * before + at(kDot) * now;
      to.peak = top;
      to.rank += at(kRank);
      to.total += at(kTotal);
      to.number += at(kNumber);
      to.close += at(kClose);
      if (to.best < at(kBest)) to.best = at(kBest);
    }
  }
}

}  // namespace
}  // namespace contrast
}  // namespace fastssl
