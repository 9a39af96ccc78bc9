// Backward pass: recompute a block of logits, turn it into G, multiply it with both sides.
#pragma once

#include "contrast/softplus.h"

namespace fastssl {
namespace contrast {
namespace {

// What one side's rows bring to a strip of G: a row's numbers broadcast, or kNr columns' loaded.
template <typename T>
struct Anchor {
  Vec<T> weight, lse, positive_weight, positive_lse, pull;
};

// Two rows of a strip's exponentials: those kept, or computed from the exponents in g.
template <typename T>
inline void exponentials(Group<T>& e, const T* kept, int64_t kept_pitch, const T* g, int64_t i) {
  if (kept != nullptr) {
    load_group(e, kept + i * kept_pitch, kept_pitch);
  } else {
    load_group(e, g + i * kPitch, kPitch);
    exp2_in_range<T>(e);
  }
}

// Negatives alone, one exponential for row and column.
template <typename T>
inline void weigh_bounded(const Pass<T>& pass, const Meeting<T>& m, int64_t j, int64_t rows, T* g) {
  const T* of_rows = pass.x->factor + m.first_x;
  const T* kept = kept_strip(pass, m, j);
  Vec<T> of_columns[kNv];
  for (int c = 0; c < kNv; ++c) {
    of_columns[c] = load<T>(pass.y->factor + m.first_y + j + c * kLanes<T>);
  }
  for (int64_t i = 0; i < rows; i += kGroupRows) {
    Group<T> x;
    exponentials<T>(x, kept, pass.kept_pitch, g + j, i);
#pragma GCC unroll 8
    for (int n = 0; n < kGroupRows * kNv; ++n) x[n] *= of_columns[n % kNv] + of_rows[i + n / kNv];
#pragma GCC unroll 8
    for (int n = 0; n < kGroupRows * kNv; ++n) {
      store<T>(g + (i + n / kNv) * kPitch + j + n % kNv * kLanes<T>, x[n]);
    }
  }
}

template <typename T>
inline Anchor<T> row_anchor(const Side<T>& x, int64_t i, bool labelled) {
  Anchor<T> a = {broadcast<T>(x.weight[i]), broadcast<T>(x.lse[i]), {}, {}, {}};
  if (!labelled) return a;
  a.positive_weight = broadcast<T>(x.positive_weight[i]);
  a.positive_lse = broadcast<T>(x.positive_lse[i]);
  a.pull = broadcast<T>(x.pull[i]);
  return a;
}

template <typename T>
inline Anchor<T> column_anchor(const Side<T>& y, int64_t j, bool labelled) {
  Anchor<T> a = {load<T>(y.weight + j), load<T>(y.lse + j), {}, {}, {}};
  if (!labelled) return a;
  a.positive_weight = load<T>(y.positive_weight + j);
  a.positive_lse = load<T>(y.positive_lse + j);
  a.pull = load<T>(y.pull + j);
  return a;
}

// G's part of one anchor: negatives by weight, positives by their own, in any range of logits.
template <int64_t kind, typename T>
inline void weigh_one(const Anchor<T> (&a)[2], Vec<T> t, Mask<T> positive, Mask<T> real,
                      const Mask<T> (&inside)[2], Vec<T>& g) {
  Vec<T> x[2], softplus[2], sigmoid[2];
  for (int s = 0; s < 2; ++s) {
    x[s] = t - (kind == kLabelled ? (positive ? a[s].positive_lse : a[s].lse) : a[s].lse);
  }
  Vec<T> odds[2] = {-x[0], -x[1]};
  if (kind == kPaired) softplus_and_sigmoid<T>(odds, softplus, sigmoid);
  exp2_or_zero<T>(x);
  g = Vec<T>{};
  for (int s = 0; s < 2; ++s) {
    const Vec<T> of_negative = chosen<T>(real & ~positive & inside[s], x[s] * a[s].weight);
    Vec<T> of_positive = {};
    if (kind == kLabelled) of_positive = x[s] * a[s].positive_weight + a[s].pull;
    if (kind == kPaired) of_positive = -a[s].pull * sigmoid[s];
    g += of_negative + chosen<T>(real & positive, of_positive);
  }
}

// A strip of G in its general form, from logits that are kNever<false> where they do not count.
template <int64_t kind, typename T>
void weigh_any(const Pass<T>& pass, const Meeting<T>& m, int64_t j, int64_t rows, T* g) {
  constexpr bool labelled = kind == kLabelled || kind == kPaired;
  const Side<T>&x = *pass.x, &y = *pass.y;
  Anchor<T> columns[kNv];
  Mask<T> labels[kNv] = {};
  for (int c = 0; c < kNv; ++c) {
    columns[c] = column_anchor<T>(y, m.first_y + j + c * kLanes<T>, labelled);
  }
  if (labelled) load_labels<T>(labels, y.labels + m.first_y + j);
  const Mask<T> all = Mask<T>{} == Mask<T>{};
  for (int64_t i = 0; i < rows; ++i) {
    const Anchor<T> row = row_anchor<T>(x, m.first_x + i, labelled);
    for (int c = 0; c < kNv; ++c) {
      T* at = g + i * kPitch + j + c * kLanes<T>;
      const Vec<T> t = load<T>(at);
      const Mask<T> real = is_real<false, T>(t);
      Mask<T> positive = {};
      if (labelled) positive = labels[c] == x.labels[m.first_x + i];
      Mask<T> inside[2] = {all, all};
      if (x.low != nullptr) inside[0] = (t >= x.low[m.first_x + i]) & (t <= x.high[m.first_x + i]);
      if (y.low != nullptr) {
        const int64_t column = m.first_y + j + c * kLanes<T>;
        inside[1] = (t >= load<T>(y.low + column)) & (t <= load<T>(y.high + column));
      }
      Vec<T> value;
      weigh_one<kind, T>({row, columns[c]}, t, positive, real, inside, value);
      store<T>(at, value);
    }
  }
}

// weight * sigmoid(t): rows alone are anchors, and windows are none of SigLIP's.
template <typename T>
void weigh_sigmoid(const Pass<T>& pass, const Meeting<T>& m, int64_t j, int64_t rows, T* g,
                   double* total) {
  const T* kept = kept_strip(pass, m, j);
  Vec<T> sum = {};
  for (int64_t i = 0; i < rows; i += kGroupRows) {
    Group<T> t, softplus, sigmoid;
    if (kept != nullptr) {
      load_group(sigmoid, kept + i * pass.kept_pitch, pass.kept_pitch);
    } else {
      load_group(t, g + i * kPitch + j, kPitch);
      softplus_and_sigmoid<T>(t, softplus, sigmoid);
    }
#pragma GCC unroll 8
    for (int n = 0; n < kGroupRows * kNv; ++n) {
      const Vec<T> value = sigmoid[n] * pass.x->weight[m.first_x + i + n / kNv];
      sum += value;
      store<T>(g + (i + n / kNv) * kPitch + j + n % kNv * kLanes<T>, value);
    }
  }
  *total += double(lane_sum<T>(sum));
}

// Labelled positives and negatives, one exponential for row and column.
template <typename T>
inline void weigh_labels_bounded(const Pass<T>& pass, const Meeting<T>& m, int64_t j, int64_t rows,
                                 T* g) {
  const Side<T>&x = *pass.x, &y = *pass.y;
  const T* kept = kept_strip(pass, m, j);
  Vec<T> factor[kNv], positive_factor[kNv], pull[kNv];
  Mask<T> labels[kNv];
  load_labels<T>(labels, y.labels + m.first_y + j);
  for (int c = 0; c < kNv; ++c) {
    const int64_t at = m.first_y + j + c * kLanes<T>;
    factor[c] = load<T>(y.factor + at);
    positive_factor[c] = load<T>(y.positive_factor + at);
    pull[c] = load<T>(y.pull + at);
  }
  for (int64_t i = 0; i < rows; i += kGroupRows) {
    Group<T> e;
    exponentials<T>(e, kept, pass.kept_pitch, g + j, i);
    for (int n = 0; n < kGroupRows * kNv; ++n) {
      const int64_t row = m.first_x + i + n / kNv;
      const int c = n % kNv;
      const Mask<T> positive = labels[c] == x.labels[row];
      const Vec<T> of_factor =
          positive ? positive_factor[c] + x.positive_factor[row] : factor[c] + x.factor[row];
      // An exponential is zero where a pair is no candidate, and nowhere else.
      const Mask<T> pulled = positive & (e[n] != T(0));
      const Vec<T> value = e[n] * of_factor + chosen<T>(pulled, pull[c] + x.pull[row]);
      store<T>(g + (i + n / kNv) * kPitch + j + c * kLanes<T>, value);
    }
  }
}

// G for the pairs of two blocks, kPitch from row to row; on the diagonal, the whole square.
template <typename T>
void fill_g(const Pass<T>& pass, const Meeting<T>& m, T* g, double* total) {
  const bool windows = pass.x->low != nullptr || pass.y->low != nullptr;
  const bool bounded = pass.bounded && !windows && pass.kind != kPaired && pass.kind != kSigmoid;
  for (int64_t j = 0; j < m.columns; j += kNr<T>) {
    if (bounded) {
      const int64_t rows =
          pass.kept != nullptr ? strip_rows(m, j) : exponents<true>(pass, m, j, g + j, kPitch);
      if (pass.kind == kLabelled) {
        weigh_labels_bounded(pass, m, j, rows, g);
      } else {
        weigh_bounded(pass, m, j, rows, g);
      }
      continue;
    }
    const int64_t rows =
        pass.kept != nullptr ? strip_rows(m, j) : exponents<false>(pass, m, j, g + j, kPitch);
    switch (pass.kind) {
      case kSoftmax:
        weigh_any<kSoftmax>(pass, m, j, rows, g);
        break;
      case kSigmoid:
        weigh_sigmoid(pass, m, j, rows, g, total);
        break;
      case kLabelled:
        weigh_any<kLabelled>(pass, m, j, rows, g);
        break;
      case kPaired:
        weigh_any<kPaired>(pass, m, j, rows, g);
        break;
    }
  }
  if (!m.diagonal) return;
  for (int64_t i = 1; i < m.rows; ++i) {
    for (int64_t j = 0; j < i; ++j) g[i * kPitch + j] = g[j * kPitch + i];
  }
}

// to.grad[block_to] += A from[block_from], A(i, k) at g[i * row_step + k * k_step].
template <int row_step, int k_step, typename T>
void accumulate(const Pass<T>& pass, const Side<T>& to, int64_t block_to, const Side<T>& from,
                int64_t block_from, const T* g) {
  const int64_t rows = to.rows - block_to * to.block, depth = from.rows - block_from * from.block;
  const int64_t last_k = depth < from.block ? depth : from.block;
  const T* slab = slab_of(pass, from, block_from);
  T* grad = to.grad + block_to * to.block * pass.padded_depth;
  for (int64_t k = 0; k < pass.padded_depth; k += kNr<T>) {
    for (int64_t i = 0; i < to.block && i < rows; i += kMr) {
      Tile<T> tile;
      T* cell = grad + i * kNr<T>;
#pragma GCC unroll 16
      for (int r = 0; r < kMr; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < kNv; ++c) {
          tile.v[r][c] = load<T>(cell + r * kNr<T> + c * kLanes<T>);
        }
      }
      multiply<row_step, k_step>(tile, g + i * row_step, slab, last_k);
#pragma GCC unroll 16
      for (int r = 0; r < kMr; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < kNv; ++c) {
          store<T>(cell + r * kNr<T> + c * kLanes<T>, tile.v[r][c]);
        }
      }
    }
    slab += from.block * kNr<T>;
    grad += to.block * kNr<T>;
  }
}

template <typename T>
void backward(const Pass<T>& pass, int64_t block_x, int64_t block_y, T* g) {
  const Side<T>&x = *pass.x, &y = *pass.y;
  const Meeting<T> m(pass, block_x, block_y);
  fill_g(pass, m, g, x.block_total + block_x);
  if (x.grad != nullptr) accumulate<kPitch, 1>(pass, x, block_x, y, block_y, g);
  if (y.grad != nullptr && !m.diagonal) accumulate<1, kPitch>(pass, y, block_y, x, block_x, g);
}

// The mate's share, the logits' scale, and the Jacobian of the normalisation (I - z zT) / |x|, then
// out in the type of the input.
template <typename T>
void gradient(const Pass<T>& pass, const Side<T>& side, const Side<T>& other, int64_t block,
              T* scratch) {
  const int64_t first = block * side.block;
  for (int64_t i = 0; i < side.block && first + i < side.rows; ++i) {
    const int64_t row = first + i;
    const T* z = slab_of(pass, side, block) + i * kNr<T>;
    const T* sum = side.grad + first * pass.padded_depth + i * kNr<T>;
    const Vec<T> scale = broadcast<T>(T(pass.grad_scale));
    const int64_t mate = side.mate == nullptr ? -1 : side.mate[row];
    const T* mates = z;  // any row, where there is none
    Vec<T> mate_weight = {};
    int64_t mates_block = side.block;
    if (mate >= 0) {
      mates = slab_of(pass, other, mate / other.block) + mate % other.block * kNr<T>;
      mates_block = other.block;
      mate_weight = broadcast<T>(side.mate_weight[row]);
    }
    Vec<T> dot[kNv] = {};
    for (int64_t k = 0; k < pass.padded_depth; k += kNr<T>) {
      for (int c = 0; c < kNr<T>; c += kLanes<T>) {
        const Vec<T> mates_share =
            mate >= 0 ? mate_weight * load<T>(mates + k * mates_block + c) : Vec<T>{};
        const Vec<T> dz = load<T>(sum + k * side.block + c) + mates_share;
        dot[c / kLanes<T>] += dz * load<T>(z + k * side.block + c);
        store<T>(scratch + k + c, dz * scale);
      }
    }
    double along = 0;
    for (int c = 0; c < kNv; ++c) along += double(lane_sum<T>(dot[c]));
    side.grad_dot[row] = along;
    along *= pass.grad_scale;
    const Output out = side.out[row / side.half];
    if (out.data == nullptr) continue;
    if (side.normalize) {
      const T inverse = side.inverse_norm[row];
      // A row shorter than the smallest norm is divided by that constant: no projection. Its
      // gradient may be larger than float16 can hold; the largest float16 is kept then.
      const bool dead = inverse == T(kSmallestNormInverse);
      const Vec<T> back = broadcast<T>(dead ? T(0) : T(along));
      for (int64_t k = 0; k < pass.padded_depth; k += kNr<T>) {
        for (int c = 0; c < kNr<T>; c += kLanes<T>) {
          const Vec<T> dz = load<T>(scratch + k + c) - back * load<T>(z + k * side.block + c);
          store<T>(scratch + k + c, dz * inverse);
        }
      }
      if (dead && out.dtype == DType::kFloat16) {
        for (int64_t k = 0; k < pass.depth; ++k) {
          scratch[k] = scratch[k] > T(65504) ? T(65504) : scratch[k];
          scratch[k] = scratch[k] < T(-65504) ? T(-65504) : scratch[k];
        }
      }
    }
    store_row<T>(scratch, pass.depth, out.dtype, out.data, row % side.half * pass.depth);
  }
}

}  // namespace
}  // namespace contrast
}  // namespace fastssl
