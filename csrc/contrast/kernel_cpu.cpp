// Compiled once per instruction set, with FASTSSL_ISA naming the namespace.
#include "contrast/backward.h"
#include "contrast/forward.h"
#include "contrast/labels.h"
#include "contrast/softplus.h"

namespace fastssl {
namespace contrast {
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

// Reads a block of rows in whatever type and layout they come, normalises, writes the copies.
template <typename T>
void pack(const Pass<T>& pass, const Side<T>& side, int64_t block, T* scratch) {
  const int64_t first = block * side.block;
  T* slab = side.slabs == nullptr ? nullptr : side.slabs + first * pass.padded_depth;
  T largest = 0;
  for (int64_t i = 0; i < side.block; ++i) {
    const int64_t row = first + i;
    T inverse = 1;
    for (int64_t k = pass.depth; k < pass.padded_depth; ++k) scratch[k] = 0;
    if (row < side.rows) {
      const Matrix& z = side.z[row / side.half];
      load_row<T>(z.data, z.dtype, row % side.half * z.row_stride, z.column_stride, pass.depth,
                  scratch);
      double square = square_norm(scratch, pass.padded_depth);
      if (side.normalize) {
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
    side.inverse_norm[row] = inverse;
    for (int64_t k = 0; slab != nullptr && k < pass.padded_depth; k += kNr<T>) {
      for (int c = 0; c < kNr<T>; c += kLanes<T>) {
        store<T>(slab + k * side.block + i * kNr<T> + c, load<T>(scratch + k + c));
      }
    }
    if (side.panels == nullptr) continue;
    T* panel = side.panels + (row - row % kNr<T>)*pass.depth + row % kNr<T>;
    for (int64_t k = 0; k < pass.depth; ++k) panel[k * kNr<T>] = scratch[k];
  }
  side.block_bound[block] = largest;
}

template <typename T>
int64_t forward_size(const Pass<T>& pass) {
  return pass.x->block * (6 * kLanes<T> + kNr<T>);
}

template <typename T>
int64_t scratch_size(const Pass<T>& pass) {
  const int64_t square = kPitch * kPitch;
  const int64_t forward = forward_size(pass) + tally_size<T>(pass.x->block) + square;
  return forward > pass.padded_depth ? forward : pass.padded_depth;
}

template <typename T>
void forward(const Pass<T>& pass, int64_t block_x, int64_t block_y, T* scratch) {
  Meeting<T> m(pass, block_x, block_y);
  T* tally = scratch + forward_size(pass);
  T* square = tally + tally_size<T>(pass.x->block);
  if (pass.x->tally != nullptr) {
    m.tally = tally;
    start_tally(pass, tally);
  }
  if (pass.kind == kSigmoid) {
    forward_sigmoid(pass, m, scratch);
  } else if (pass.kind == kLabelled) {
    if (pass.bounded) {
      forward_labels_bounded(pass, m, scratch);
    } else {
      forward_labels_streaming(pass, m, scratch);
    }
  } else if (pass.bounded) {
    forward_bounded(pass, m, scratch, pass.expected ? square : nullptr);
    if (pass.expected) accumulate<kPitch, 1>(pass, *pass.x, block_x, *pass.y, block_y, square);
  } else {
    forward_streaming(pass, m, scratch);
  }
  if (m.tally != nullptr) finish_tally(pass, m, tally);
}

}  // namespace

namespace FASTSSL_ISA {

extern const Kernels<float> kFloat = {kMr,     kNr<float>, kPitch,    scratch_size, pack,
                                      forward, pairs,      positives, backward,     gradient};
extern const Kernels<double> kDouble = {kMr,     kNr<double>, kPitch,    scratch_size, pack,
                                        forward, pairs,       positives, backward,     gradient};

}  // namespace FASTSSL_ISA
}  // namespace contrast
}  // namespace fastssl
