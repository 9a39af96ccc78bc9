// Backward pass: recompute a block of similarities, turn it into G, multiply it with both sides.
#pragma once

#include "nt_xent/tile.h"

namespace fastssl {
namespace nt_xent {
namespace {

// G for the pairs of two blocks, kPitch from row to row; on the diagonal, the whole square.
template <bool bounded, typename T>
void fill_g(const Pass<T>& pass, int64_t block_i, int64_t block_j, T* g) {
  constexpr int count = kGroupRows * kNv;
  const int64_t first_i = block_i * pass.block, first_j = block_j * pass.block;
  for (int64_t j = 0; j < pass.block && first_j + j < pass.rows; j += kNr<T>) {
    const int64_t rows = exponents<bounded>(pass, block_i, first_j + j, g + j, kPitch);
    // By row and by column: the weight that comes with P_ij, and where unbounded, lse.
    const T* row_weight = (bounded ? pass.row_factor : pass.weight) + first_i;
    const T* weight = (bounded ? pass.row_factor : pass.weight) + first_j + j;
    const T* lse = pass.lse + first_j + j;
    Vec<T> column_weight[kNv], column_lse[kNv];
    for (int c = 0; c < kNv; ++c) {
      column_weight[c] = load<T>(weight + c * kLanes<T>);
      column_lse[c] = load<T>(lse + c * kLanes<T>);
    }
    for (int64_t i = 0; i < rows; i += kGroupRows) {
      Group<T> x;
      load_group(x, g + i * kPitch + j, kPitch);
      if (bounded) {
        exp2_in_range<T>(x);
#pragma GCC unroll 8
        for (int n = 0; n < count; ++n) x[n] *= column_weight[n % kNv] + row_weight[i + n / kNv];
      } else {
        Group<T> by_row, by_column;
        for (int n = 0; n < count; ++n) {
          by_row[n] = x[n] - pass.lse[first_i + i + n / kNv];
          by_column[n] = x[n] - column_lse[n % kNv];
        }
        exp2_or_zero<T>(by_row);
        exp2_or_zero<T>(by_column);
        for (int n = 0; n < count; ++n) {
          x[n] = by_row[n] * row_weight[i + n / kNv] + by_column[n] * column_weight[n % kNv];
        }
      }
#pragma GCC unroll 8
      for (int n = 0; n < count; ++n) {
        store<T>(g + (i + n / kNv) * kPitch + j + n % kNv * kLanes<T>, x[n]);
      }
    }
  }
  if (block_i != block_j) return;
  for (int64_t i = 1; i < pass.block && first_i + i < pass.rows; ++i) {
    for (int64_t j = 0; j < i; ++j) g[i * kPitch + j] = g[j * kPitch + i];
  }
}

// grad[to] += A z[from], where A(i, k) is at g[i * row_step + k * k_step].
template <int row_step, int k_step, typename T>
void accumulate(const Pass<T>& pass, int64_t to, int64_t from, const T* g) {
  const int64_t rows = pass.rows - to * pass.block, depth = pass.rows - from * pass.block;
  const int64_t last_k = depth < pass.block ? depth : pass.block;
  const T* slab = slab_of(pass, pass.slabs, from);
  T* grad = pass.grad + to * pass.block * pass.padded_depth;
  for (int64_t k = 0; k < pass.padded_depth; k += kNr<T>) {
    for (int64_t i = 0; i < pass.block && i < rows; i += kMr) {
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
    slab += pass.block * kNr<T>;
    grad += pass.block * kNr<T>;
  }
}

template <typename T>
void backward(const Pass<T>& pass, int64_t block_i, int64_t block_j, T* scratch) {
  if (pass.bounded) {
    fill_g<true>(pass, block_i, block_j, scratch);
  } else {
    fill_g<false>(pass, block_i, block_j, scratch);
  }
  accumulate<kPitch, 1>(pass, block_i, block_j, scratch);
  if (block_i != block_j) accumulate<1, kPitch>(pass, block_j, block_i, scratch);
}

// The partner's share, the temperature, and the Jacobian of the normalisation
// (I - z zT) / |x|, then out in the type of the input.
template <typename T>
void gradient(const Pass<T>& pass, int64_t block, T* scratch) {
  const int64_t first = block * pass.block;
  for (int64_t i = 0; i < pass.block && first + i < pass.rows; ++i) {
    const int64_t row = first + i, partner = (row + pass.half) % pass.rows;
    const T* z = slab_of(pass, pass.slabs, block) + i * kNr<T>;
    const T* other =
        slab_of(pass, pass.slabs, partner / pass.block) + partner % pass.block * kNr<T>;
    const T* sum = pass.grad + first * pass.padded_depth + i * kNr<T>;
    const Vec<T> pull = broadcast<T>(pass.pull[row] + pass.pull[partner]);
    const Vec<T> scale = broadcast<T>(T(pass.grad_scale));
    Vec<T> dot[kNv] = {};
    for (int64_t k = 0; k < pass.padded_depth; k += kNr<T>) {
      for (int c = 0; c < kNr<T>; c += kLanes<T>) {
        const int64_t at = k * pass.block + c;
        const Vec<T> dz = (load<T>(sum + at) - pull * load<T>(other + at)) * scale;
        dot[c / kLanes<T>] += dz * load<T>(z + at);
        store<T>(scratch + k + c, dz);
      }
    }
    double along = 0;
    for (int c = 0; c < kNv; ++c) along += double(lane_sum<T>(dot[c]));
    pass.grad_dot[row] = along;
    const Output out = pass.out[row / pass.half];
    if (out.data == nullptr) continue;
    if (pass.normalize) {
      const T inverse = pass.inverse_norm[row];
      // A row shorter than the smallest norm is divided by that constant: no projection. Its
      // gradient may be larger than float16 can hold; the largest float16 is kept then.
      const bool dead = inverse == T(kSmallestNormInverse);
      const Vec<T> back = broadcast<T>(dead ? T(0) : T(along));
      for (int64_t k = 0; k < pass.padded_depth; k += kNr<T>) {
        for (int c = 0; c < kNr<T>; c += kLanes<T>) {
          const Vec<T> dz = load<T>(scratch + k + c) - back * load<T>(z + k * pass.block + c);
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
    store_row<T>(scratch, pass.depth, out.dtype, out.data, row % pass.half * pass.depth);
  }
}

}  // namespace
}  // namespace nt_xent
}  // namespace fastssl
