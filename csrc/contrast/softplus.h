// ln(1 + 2^x) and 2^x / (1 + 2^x) of vectors, and SigLIP's forward pass, which sums the first.
#pragma once

#include "contrast/forward.h"

namespace fastssl {
namespace contrast {
namespace {

// ln(1 + e) / e on [0, 1]: relative error 8e-10 and 3e-19.
template <typename T>
struct Log1pTable;
template <>
struct Log1pTable<float> {
  static constexpr float kCoefficients[] = {
      1.0f,           -0.4999997949f,  0.3333249754f,  -0.2498649646f,
      0.1988582029f,  -0.1608762301f,  0.1237799587f,  -0.08188040924f,
      0.04100657369f, -0.01318782657f, 0.001986696594f};
};
template <>
struct Log1pTable<double> {
  static constexpr double kCoefficients[] = {1.0,
                                             -0.499999999999999701,
                                             0.333333333333280501,
                                             -0.249999999996271555,
                                             0.199999999859843131,
                                             -0.16666666341888502,
                                             0.142857092206460805,
                                             -0.12499943655343673,
                                             0.11110645369441435,
                                             -0.0999705228766596702,
                                             0.0907629653477789814,
                                             -0.0827558648415950073,
                                             0.0750779240195603247,
                                             -0.0666047052801388773,
                                             0.056236352954791616,
                                             -0.0436408781412111784,
                                             0.0299372107385098119,
                                             -0.0174303282915171523,
                                             0.00824754528791318488,
                                             -0.00301272519099497279,
                                             0.000791112094334202532,
                                             -0.000132207521713007561,
                                             0.0000105231354812716999};
};

// x, softplus and sigmoid, `count` vectors in lockstep. A logit that does not count, far below all
// others, gives 0 and 0.
template <typename T, int count>
inline void softplus_and_sigmoid(const Vec<T> (&x)[count], Vec<T> (&softplus)[count],
                                 Vec<T> (&sigmoid)[count]) {
  using Table = Log1pTable<T>;
  constexpr int degree = sizeof(Table::kCoefficients) / sizeof(T) - 1;
  Vec<T> e[count], p[count];
  for (int n = 0; n < count; ++n) e[n] = x[n] < 0 ? x[n] : -x[n];
  exp2_or_zero<T>(e);
  for (int n = 0; n < count; ++n) p[n] = broadcast<T>(Table::kCoefficients[degree]);
#pragma GCC unroll 32
  for (int k = degree - 1; k >= 0; --k) {
    for (int n = 0; n < count; ++n) p[n] = p[n] * e[n] + Table::kCoefficients[k];
  }
  for (int n = 0; n < count; ++n) {
    const Vec<T> above = x[n] < 0 ? Vec<T>{} : x[n];
    softplus[n] = p[n] * e[n] + above * T(0.69314718055994530942);
    sigmoid[n] = (x[n] < 0 ? e[n] : broadcast<T>(1)) / (1 + e[n]);
  }
}

// Each row's sum of ln(1 + 2^t) over negatives. Rows alone are anchors.
template <typename T>
void forward_sigmoid(const Pass<T>& pass, const Meeting<T>& m, T* scratch) {
  T* row_sums = scratch;
  T* strip = scratch + pass.x->block * kLanes<T>;
  clear_rows(row_sums, pass.x->block * kLanes<T>);
  for (int64_t j = 0; j < m.columns; j += kNr<T>) {
    const int64_t rows = candidates<false>(pass, m, j, strip, kNr<T>);
    T* kept = kept_strip(pass, m, j);
    for (int64_t i = 0; i < rows; i += kGroupRows) {
      Group<T> x, softplus, sigmoid;
      load_group(x, strip + i * kNr<T>, kNr<T>);
      softplus_and_sigmoid<T>(x, softplus, sigmoid);
      for (int n = 0; n < kGroupRows * kNv; ++n) {
        T* to = row_sums + (i + n / kNv) * kLanes<T>;
        store<T>(to, load<T>(to) + softplus[n]);
        if (kept != nullptr) {
          store<T>(kept + (i + n / kNv) * pass.kept_pitch + n % kNv * kLanes<T>, sigmoid[n]);
        }
      }
    }
  }
  add_rows(row_sums, pass.x->block, pass.x->sum + m.first_x);
}

}  // namespace
}  // namespace contrast
}  // namespace fastssl
