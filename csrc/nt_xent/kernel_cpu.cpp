// Compiled once per instruction set, with FASTSSL_ISA naming the namespace.
#include "nt_xent/backward.h"
#include "nt_xent/forward.h"

namespace fastssl {
namespace nt_xent {
namespace {

// In float64, where squares of float32 neither overflow nor vanish. kNr divides `count`.
template <typename T>
double square_norm(const T* x, int64_t count) {
  Vec<double> sums[4] = {};
  for (int64_t k = 0; k < count; k += kNr<T>) {
    for (int c = 0; c < kNr<T>; c += kLanes<double>) {
      const Vec<double> v = load_double<T>(x + k + c);
      sums[c / kLanes<double> % 4] += v * v;
    }
  }
  return lane_sum<double>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Reads a block of rows in whatever type and layout they come, normalises, writes both copies.
template <typename T>
void pack(const Pass<T>& pass, int64_t block, T* scratch) {
  const int64_t first = block * pass.block;
  T* slab = pass.slabs + first * pass.padded_depth;
  T largest = 0;
  for (int64_t i = 0; i < pass.block; ++i) {
    const int64_t row = first + i;
    T inverse = 1;
    for (int64_t k = pass.depth; k < pass.padded_depth; ++k) scratch[k] = 0;
    if (row < pass.rows) {
      const Matrix& z = pass.z[row / pass.half];
      load_row<T>(z.data, z.dtype, row % pass.half * z.row_stride, z.column_stride, pass.depth,
                  scratch);
      double square = square_norm(scratch, pass.padded_depth);
      if (pass.normalize) {
        const double norm = __builtin_sqrt(square);
        const double inverse_norm =
            norm < 1 / kSmallestNormInverse ? kSmallestNormInverse : 1 / norm;
        inverse = T(inverse_norm);
        for (int64_t k = 0; k < pass.padded_depth; k += kLanes<double>) {
          store_double<T>(scratch + k, load_double<T>(scratch + k) * inverse_norm);
        }
        square *= inverse_norm * inverse_norm;
      }
      if (!(T(square) <= largest) && largest == largest) largest = T(square);  // NaN stays
    } else {
      for (int64_t k = 0; k < pass.depth; ++k) scratch[k] = 0;
    }
    pass.inverse_norm[row] = inverse;
    for (int64_t k = 0; k < pass.padded_depth; k += kNr<T>) {
      for (int c = 0; c < kNr<T>; c += kLanes<T>) {
        store<T>(slab + k * pass.block + i * kNr<T> + c, load<T>(scratch + k + c));
      }
    }
    T* panel = pass.panels + (row - row % kNr<T>)*pass.depth + row % kNr<T>;
    for (int64_t k = 0; k < pass.depth; ++k) panel[k * kNr<T>] = scratch[k];
  }
  pass.block_bound[block] = largest;
}

template <typename T>
int64_t scratch_size(const Pass<T>& pass) {
  const int64_t forward = pass.block * (2 * kLanes<T> + kNr<T>), backward = pass.block * kPitch;
  const int64_t most = forward > backward ? forward : backward;
  return most > pass.padded_depth ? most : pass.padded_depth;
}

}  // namespace

namespace FASTSSL_ISA {

extern const Kernels<float> kFloat = {kMr,     kNr<float>, kPitch,   scratch_size, pack,
                                      forward, positives,  backward, gradient};
extern const Kernels<double> kDouble = {kMr,     kNr<double>, kPitch,   scratch_size, pack,
                                        forward, positives,   backward, gradient};

}  // namespace FASTSSL_ISA
}  // namespace nt_xent
}  // namespace fastssl
