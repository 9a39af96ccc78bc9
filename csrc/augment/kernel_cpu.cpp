// One view, from the image to the normalised output. Compiled once per instruction set, with
// FASTSSL_ISA naming the namespace.
#include "augment/blur_cpu.h"
#include "augment/color_cpu.h"
#include "augment/resample_cpu.h"

namespace fastssl {
namespace augment {
namespace {

inline void blur(const Job& job, const Planes<float>& planes, int32_t channels, Arena arena) {
  blur_gaussian<TvFloat>(job, planes, channels, arena);
}

inline void blur(const Job& job, const Planes<uint8_t>& planes, int32_t channels, Arena arena) {
  if (job.settings.blur_taps == 0) {
    blur_box(job, planes, channels, arena);
  } else {
    blur_gaussian<TvUint8>(job, planes, channels, arena);
  }
}

template <class P>
void make_view(const Job& job, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  const Planes<typename P::Sample> planes(job, &arena);
  Chunk* chunk = arena.take<Chunk>(1);
  resample<P>(job, planes, arena);
  Steps steps;
  steps.read(job);
  const Drawn& drawn = job.drawn;
  if (drawn.blur) {
    const bool gray = steps.gray_last();
    recolor<P>(job, planes, steps, false, chunk);
    blur(job, planes, gray ? 1 : planes.channels, arena);
    for (int32_t c = 1; gray && c < planes.channels; ++c) {
      __builtin_memcpy(planes.plane(c), planes.plane(0),
                       sizeof(typename P::Sample) * size_t(planes.stride));
    }
    steps.count = 0;
  }
  if (drawn.solarize) steps.add(kSolarize, 0);
  recolor<P>(job, planes, steps, true, chunk);
}

template <class P>
int64_t bytes(const Job& job) {
  Arena arena{nullptr};
  const Planes<typename P::Sample> planes(job, &arena);
  arena.take<Chunk>(1);
  const int64_t resampling = resample<P>(job, planes, Arena{nullptr});
  return arena.used + greatest(resampling, job.drawn.blur ? blur_bytes(job) : 0);
}

int64_t scratch_bytes(const Job& job) {
  switch (job.semantics) {
    case Semantics::kTvFloat:
      return bytes<TvFloat>(job);
    case Semantics::kPil:
      return bytes<Pil>(job);
    default:
      return bytes<TvUint8>(job);
  }
}

void view(const Job& job, void* scratch) {
  switch (job.semantics) {
    case Semantics::kTvFloat:
      return make_view<TvFloat>(job, scratch);
    case Semantics::kPil:
      return make_view<Pil>(job, scratch);
    default:
      return make_view<TvUint8>(job, scratch);
  }
}

}  // namespace

namespace FASTSSL_ISA {

extern const Kernels kKernels = {scratch_bytes, view};

}  // namespace FASTSSL_ISA
}  // namespace augment
}  // namespace fastssl
