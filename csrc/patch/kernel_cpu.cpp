// Patches and tokens on the CPU. Compiled once per instruction set, with FASTSSL_ISA naming the
// namespace.
#include "patch/loss_cpu.h"
#include "patch/tokens_cpu.h"

namespace fastssl {
namespace patch {
namespace {

template <typename T>
inline bool gather_rows(const GatherJob& job, int64_t b, int64_t begin, int64_t end,
                        void* scratch) {
  const Images& images = job.images;
  const Plan& plan = job.plan;
  const int64_t channels = images.channels, area = images.area(), width = images.width();
  const int64_t bytes = width * bytes_of(job.dtype);
  const bool planar = job.order == Order::kCpq || channels == 1, direct = job.dtype == kDType<T>;
  T *pixels = static_cast<T*>(scratch), *row = pixels + width;
  for (int64_t k = begin; k < end; ++k) {
    char* out = static_cast<char*>(job.out) + (b * plan.keep + k) * bytes;
    if (k >= plan.kept(b)) {
      __builtin_memset(out, 0, size_t(bytes));
      continue;
    }
    const int64_t l = plan.shuffle[b * plan.length + k];
    if (uint64_t(l) >= uint64_t(plan.length)) return false;
    T* last = direct ? reinterpret_cast<T*>(out) : row;
    T* first = planar ? last : pixels;
    load_patch<T>(images, b, l, first);
    for (int64_t c = 0; c < channels; ++c) {
      affine<T>(first + c * area, area, T(job.scale[c]), T(job.shift[c]));
    }
    if (!planar) interleave(first, channels, area, last);
    if (!direct) store_row<T>(last, width, job.dtype, out, 0);
  }
  return true;
}

int64_t scratch_bytes(const Images& images) {
  return 4 * images.width() * int64_t(sizeof(double)) +
         images.channels * int64_t(sizeof(Moments<double>));
}

bool gather(const GatherJob& job, int64_t b, int64_t begin, int64_t end, void* scratch) {
  return job.dtype == DType::kFloat64 ? gather_rows<double>(job, b, begin, end, scratch)
                                      : gather_rows<float>(job, b, begin, end, scratch);
}

bool loss(const LossJob& job, int64_t b, int64_t begin, int64_t end, void* scratch, double* sum) {
  return job.dtype == DType::kFloat64 ? loss_rows<double>(job, b, begin, end, scratch, sum)
                                      : loss_rows<float>(job, b, begin, end, scratch, sum);
}

bool gather_tokens(const TokensJob& job, int64_t b) {
  return job.dtype == DType::kFloat64 ? gather_rows<double>(job, b) : gather_rows<float>(job, b);
}

bool restore_tokens(const TokensJob& job, int64_t b) {
  return job.dtype == DType::kFloat64 ? restore_rows<double>(job, b) : restore_rows<float>(job, b);
}

void sum_removed(const TokensJob& job, int64_t b, void* scratch, double* sum) {
  if (job.x_dtype == DType::kFloat64) {
    sum_removed_rows<double>(job, b, scratch, sum);
  } else {
    sum_removed_rows<float>(job, b, scratch, sum);
  }
}

}  // namespace

namespace FASTSSL_ISA {

extern const Kernels kKernels = {scratch_bytes, gather,         loss,
                                 gather_tokens, restore_tokens, sum_removed};

}  // namespace FASTSSL_ISA
}  // namespace patch
}  // namespace fastssl
