// The seam between the operators (torch on one side) and their kernels (raw pointers on the other).
//
// Rows x [R, D] are compared with rows y [C, D], or with each other ("symmetric": both sides are
// one). Each side is cut into blocks of rows. Two packed copies make every inner loop read
// contiguous memory; kNr is the width of a register tile:
//   panels[row / kNr][k][row % kNr]           right operand of S = x yT
//   slabs[row / block][k / kNr][row % block][k % kNr]   left operand of S, right operand of G y
// Rows past the last and columns past D are zero. Logits are kept in units of log2:
//   t_ij = <x_i, y_j> * scale - shift,   scale = log2(e) * what the caller multiplies cosines by.
// fastssl/ops/contrast/pairs.py says which pairs are negatives and which positives.
#pragma once

#include <stdint.h>

#include "common/half.h"

namespace fastssl {
namespace contrast {

// Rows are divided by max(|x|, 1e-12), as torch.nn.functional.normalize does.
constexpr double kSmallestNormInverse = 1e12;

// As pairs.py numbers them.
enum Kind : int64_t { kSoftmax = 0, kSigmoid = 1, kLabelled = 2, kPaired = 3 };

struct Matrix {
  const void* data;
  DType dtype;
  int64_t row_stride, column_stride;  // in elements
};

struct Output {
  void* data;  // row-major [rows, D]; null where no gradient is wanted
  DType dtype;
};

// Labels are numbered from 0 by their first appearance, as wide as the lanes that compare them.
template <typename T>
struct LabelOf;
template <>
struct LabelOf<float> {
  typedef int32_t Type;
};
template <>
struct LabelOf<double> {
  typedef int64_t Type;
};
template <typename T>
using Label = typename LabelOf<T>::Type;

// What metrics sum over a row's candidates; `sum` and `dot` (of 2^t and 2^t t) relative to 2^peak.
struct Tally {
  double peak, sum, dot, rank, total, number, close, best;
};

// One side of the comparison. Arrays over rows have blocks * block entries unless said otherwise.
template <typename T>
struct Side {
  Matrix z[2];   // its rows may come in two parts,
  int64_t half;  // of which the first has so many
  int64_t rows;
  int64_t block, blocks;  // rows in a block, their count
  bool normalize;
  T* panels;        // null where the side is no right operand of S
  T* slabs;         // null where it is nothing else
  T* inverse_norm;  // 1 where not normalised
  T* block_bound;   // [blocks] largest squared norm of a packed row

  const Label<T>* labels;   // null: none
  const int64_t* mate;      // the row of the other side that is this row's positive, -1: none
  const int64_t* excluded;  // the row of y that is not compared with this row of x, -1: none
  const T *low, *high;      // null, or the least and greatest t of a negative
  const T* threshold;       // with metrics: negatives above it are counted

  // Forward. For negatives: sum of 2^(t - peak), where `peak` is pass.bound throughout when
  // bounded; for kSigmoid the sum of ln(1 + 2^t). The same for positives where labels tell them;
  // their total of t (kPaired: of ln(1 + 2^(lse - t)), and in positive_sum of the sigmoid), their
  // count.
  double *peak, *sum;
  double *positive_peak, *positive_sum, *positive_total, *count;
  Tally* tally;  // null without metrics

  // Backward. Negatives contribute weight * 2^(t - lse) to G (kSigmoid: weight * sigmoid(t)); where
  // bounded, factor * 2^(t - bound). Positives by label contribute the same of their own, and
  // `pull`; for kPaired, -pull * sigmoid(lse - t). The mate contributes mate_weight.
  const T *lse, *weight, *factor;
  const T *positive_lse, *positive_weight, *positive_factor, *pull;
  const T* mate_weight;
  T* grad;  // laid out as slabs: sum_j G_ij y_j; null where no gradient is wanted
  Output out[2];
  double* grad_dot;     // <x_i, sum_j G_ij y_j>
  double* block_total;  // [blocks] sums of G (kSigmoid)
};

template <typename T>
struct Pass {
  Side<T>*x, *y;   // the same where symmetric
  bool symmetric;  // pairs are taken once, from above the diagonal
  bool columns;    // rows of y are anchors too
  int64_t kind;
  int64_t depth;         // D
  int64_t padded_depth;  // D rounded up to kNr
  T scale, shift;
  // Where |t_ij| <= bound for all pairs and bound is small enough, 2^(t_ij - bound) can neither
  // overflow nor underflow: one exponential serves row and column. Otherwise `bounded` is false.
  T bound;
  bool bounded;
  bool equal_labels_drop;  // pairs of one label are no candidates
  bool expected;           // forward: x.grad becomes sum_j 2^(t_ij - bound) y_j besides
  // Null, or 2^(t - bound) (kSigmoid: sigmoid(t)) of all pairs, rows `kept_pitch` apart: the
  // forward pass writes them, the backward pass reads them instead of computing them again.
  T* kept;
  int64_t kept_pitch;
  T close_scale, close_shift;  // metrics: 4 log2(e) (s / scale - 1) = t * close_scale + close_shift
  double grad_scale;           // what the weights were divided by, times the logits' scale
};

// One table per instruction set and type. `scratch` holds `scratch_size(pass)` elements, one for
// each thread that runs at the same time, 64-byte aligned.
template <typename T>
struct Kernels {
  int64_t tile_rows, tile_columns;  // kMr, kNr
  int64_t most_rows;                // of a block
  int64_t (*scratch_size)(const Pass<T>&);
  void (*pack)(const Pass<T>&, const Side<T>&, int64_t block, T* scratch);
  void (*forward)(const Pass<T>&, int64_t block_x, int64_t block_y, T* scratch);
  // kPaired, after forward: the losses of positive pairs.
  void (*pairs)(const Pass<T>&, int64_t block_x, int64_t block_y, T* scratch);
  void (*positives)(const Pass<T>&, int64_t block,
                    T* out);  // t + shift of each row of x with its mate
  void (*backward)(const Pass<T>&, int64_t block_x, int64_t block_y, T* scratch);
  void (*gradient)(const Pass<T>&, const Side<T>& of, const Side<T>& other, int64_t block,
                   T* scratch);
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

}  // namespace contrast
}  // namespace fastssl
