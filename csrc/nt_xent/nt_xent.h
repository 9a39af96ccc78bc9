// The seam between the operator (torch on one side) and its kernels (raw pointers on the other).
//
// M = 2N rows z = [z0; z1] are cut into blocks of `block` rows. Two packed copies of the rows make
// every inner loop read contiguous memory; kNr is the width of a register tile:
//   panels[row / kNr][k][row % kNr]           right operand of S = z zT
//   slabs[row / block][k / kNr][row % block][k % kNr]   left operand of S, right operand of G z
// Rows past M and columns past D are zero. Similarities are kept in units of log2:
//   t_ij = <z_i, z_j> * scale,   scale = log2(e) / temperature.
// "Negatives" of row i are all j other than i and its partner p(i) = (i + N) mod M.
#pragma once

#include <stdint.h>

#include "common/half.h"

namespace fastssl {
namespace nt_xent {

// Rows are divided by max(|x|, 1e-12), as torch.nn.functional.normalize does.
constexpr double kSmallestNormInverse = 1e12;

struct Matrix {
  const void* data;
  DType dtype;
  int64_t row_stride, column_stride;  // in elements
};

struct Output {
  void* data;  // row-major [N, D]
  DType dtype;
};

template <typename T>
struct Pass {
  int64_t half, rows, depth;  // N, M, D
  int64_t padded_depth;       // D rounded up to kNr
  int64_t block, blocks;      // rows in a block (a multiple of both tile sides), their count
  T scale;                    // log2(e) / temperature
  // Where |t_ij| <= bound for all pairs and bound is small enough, 2^(t_ij - bound) can neither
  // overflow nor underflow: one exponential serves row and column. Otherwise `bounded` is false.
  T bound;
  bool bounded;
  bool normalize;
  Matrix z[2];
  T* panels;
  T* slabs;
  T* inverse_norm;  // [padded rows]; 1 where not normalised
  T* block_bound;   // [blocks] largest squared norm of a packed row
  // Forward: sum over negatives of 2^(t_ij - peak_i). `peak` is `bound` throughout when bounded.
  double* peak;  // [padded rows]
  double* sum;   // [padded rows]
  // Backward. P_ij = 2^(t_ij - lse_i); G_ij = weight_i P_ij + weight_j P_ji.
  const T* lse;         // [padded rows], log2
  const T* weight;      // [padded rows] upstream gradient, largest magnitude 1; 0 past M
  const T* row_factor;  // [padded rows] weight_i 2^(bound - lse_i), used when bounded
  const T* pull;        // [padded rows] weight_i (1 - P_ip)
  T* grad;              // laid out as slabs: sum_j G_ij z_j over negatives
  double grad_scale;    // what the weights were divided by, over the temperature
  Output out[2];        // data is null where no gradient is wanted
  double* grad_dot;     // [padded rows] <z_i, dL/dz_i>
};

// One table per instruction set and type. `scratch` holds `scratch_size(pass)` elements, one for
// each thread that runs at the same time, 64-byte aligned.
template <typename T>
struct Kernels {
  int64_t tile_rows, tile_columns;  // kMr, kNr
  int64_t most_rows;                // of a block
  int64_t (*scratch_size)(const Pass<T>&);
  void (*pack)(const Pass<T>&, int64_t block, T* scratch);
  void (*forward)(const Pass<T>&, int64_t block_i, int64_t block_j, T* scratch);
  void (*positives)(const Pass<T>&, int64_t block, T* out);  // t_ip for each row of the block
  void (*backward)(const Pass<T>&, int64_t block_i, int64_t block_j, T* scratch);
  void (*gradient)(const Pass<T>&, int64_t block, T* scratch);
};

namespace base {
extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
}  // namespace base
namespace avx2 {
extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
}  // namespace avx2
namespace avx512 {
extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
}  // namespace avx512
namespace wide {
extern const Kernels<float> kFloat;
extern const Kernels<double> kDouble;
}  // namespace wide

}  // namespace nt_xent
}  // namespace fastssl
