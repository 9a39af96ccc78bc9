// The seam between the operators on patches and their kernels: plain structs and functions.
#pragma once

#include <stdint.h>

#include "common/half.h"

namespace fastssl {
namespace patch {

constexpr int kAxes = 3;  // frames, rows, columns; those an image does not have are 1

// Images [batch, channels, *space], cut into patches. Strides count elements.
struct Images {
  const void* data;
  bool is_uint8;
  DType dtype;  // where it is not uint8
  int64_t batch, channels;
  int64_t batch_stride, channel_stride;
  int64_t grid[kAxes], patch[kAxes], stride[kAxes];

  int64_t length() const { return grid[0] * grid[1] * grid[2]; }
  int64_t area() const { return patch[0] * patch[1] * patch[2]; }  // of a patch, in pixels
  int64_t width() const { return channels * area(); }              // numbers in a patch

  // Of the first pixel of patch `l`, from the start of its sample.
  int64_t offset(int64_t l) const {
    const int64_t column = l % grid[2], row = l / grid[2] % grid[1], frame = l / grid[2] / grid[1];
    return frame * patch[0] * stride[0] + row * patch[1] * stride[1] +
           column * patch[2] * stride[2];
  }
};

// A plan of B samples with L patches each; `lengths` may be null.
struct Plan {
  const int64_t *shuffle, *restore, *lengths;
  int64_t batch, length, keep;

  int64_t kept(int64_t sample) const { return lengths ? lengths[sample] : keep; }
};

enum class Order { kPqc, kCpq };  // in a patch: channels fastest, or slowest
enum class Kind { kMse, kL1, kSmoothL1, kCosine };
enum class Statistics { kPatch, kPatchChannel };

struct GatherJob {
  Images images;
  Plan plan;
  const double *scale, *shift;  // of each channel: a pixel x becomes x * scale + shift
  Order order;
  DType dtype;
  void* out;  // [batch, keep, width]
};

struct TokensJob {
  Plan plan;
  const void* x;  // [batch, rows, width]
  DType x_dtype;
  int64_t x_stride[3];
  int64_t width, prefix;
  const void *token, *pos;  // of the compute type and contiguous; may be null
  void* out;                // contiguous
  DType dtype;              // as x_dtype or the compute type
};

struct LossJob {
  Images images;
  Plan plan;
  const double *scale, *shift;
  Order order;
  bool norm_pix;
  Kind kind;
  Statistics statistics;
  const void* pred;  // [batch, rows, width]
  DType dtype;       // of pred and gradient
  int64_t pred_stride[3];
  bool removed_only;  // rows are those of removed patches, in the order of the plan
  double count;       // of removed patches
  double upstream;    // the gradient is that of the loss times this
  void* gradient;     // [batch, rows, width], contiguous; null where none is wanted
};

// One copy of these for each instruction set. All but sum_removed return false where a plan points
// outside of its patches.
struct Kernels {
  // Bytes that `gather` and `loss` need, aligned to 64.
  int64_t (*scratch_bytes)(const Images& images);
  // Rows [begin, end) of sample b.
  bool (*gather)(const GatherJob& job, int64_t b, int64_t begin, int64_t end, void* scratch);
  // The sum over rows [begin, end) of pred of their losses, each a mean over the width.
  bool (*loss)(const LossJob& job, int64_t b, int64_t begin, int64_t end, void* scratch,
               double* sum);
  // All rows of sample b.
  bool (*gather_tokens)(const TokensJob& job, int64_t b);
  bool (*restore_tokens)(const TokensJob& job, int64_t b);
  // Adds the removed rows of sample b to sum [width]; `scratch` has room for width doubles.
  void (*sum_removed)(const TokensJob& job, int64_t b, void* scratch, double* sum);
};

namespace base {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace wide {
extern const Kernels kKernels;
}

}  // namespace patch
}  // namespace fastssl
