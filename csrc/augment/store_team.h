// The normalised view, written by a team with 16-byte stores where its layout allows them.
#pragma once

#include "augment/rules_team.h"
#include "common/half.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastssl {
namespace augment {
namespace {

template <OutputType type>
struct Stored {
  using Type = uint16_t;
};
template <>
struct Stored<OutputType::kFloat32> {
  using Type = float;
};
template <>
struct Stored<OutputType::kUint8> {
  using Type = uint8_t;
};

template <OutputType type>
FASTSSL_TEAM inline typename Stored<type>::Type narrowed(float x) {
  if constexpr (type == OutputType::kFloat32) {
    return x;
  } else if constexpr (type == OutputType::kUint8) {
    return uint8_t(x);
  } else {
#ifdef __CUDA_ARCH__
    return type == OutputType::kBFloat16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x))
                                         : __half_as_ushort(__float2half_rn(x));
#elif !defined(__CUDACC__)
    return type == OutputType::kBFloat16 ? to_bfloat16(x) : to_float16(x);
#else
    return 0;
#endif
  }
}

// Writes to[i] = next() for i in [0, count): `start(i)` gives the `next` that begins there.
template <class T, class Team, class F>
FASTSSL_TEAM void write_run(const Team& team, T* to, int64_t count, const F& start) {
  constexpr int kPack = 16 / sizeof(T);
  struct alignas(16) Pack {
    T x[kPack];
  };
  // Packs lie at multiples of 16 bytes; at either end some of their elements are not ours.
  const int64_t before = int64_t(reinterpret_cast<uintptr_t>(to) % 16 / sizeof(T));
  team.for_each((before + count + kPack - 1) / kPack, [&](int64_t i) {
    const int64_t first = i * kPack - before;
    if (first >= 0 && first + kPack <= count) {
      auto next = start(first);
      Pack pack;
      FASTSSL_UNROLL for (int k = 0; k < kPack; ++k) pack.x[k] = next();
      *reinterpret_cast<Pack*>(to + first) = pack;
      return;
    }
    const int64_t begin = greatest<int64_t>(first, 0);
    auto next = start(begin);
    for (int64_t k = begin; k < least<int64_t>(first + kPack, count); ++k) to[k] = next();
  });
}

// Where planes are alike there is one of them, and `stride` is 0.
template <Semantics semantics>
struct Finish {
  using Sample = typename Rules<semantics>::Sample;
  const Job& job;
  const Sample* view;
  int64_t stride;
  float top, threshold;

  FASTSSL_TEAM Finish(const Job& job_, const Sample* view_, int64_t stride_)
      : job(job_), view(view_), stride(stride_) {
    top = Rules<semantics>::kLevels ? 255.0f : 1.0f;
    threshold =
        job.drawn.solarize ? float(job.settings.solarize_threshold) / (255.0f / top) : 3e38f;
  }

  template <OutputType type>
  FASTSSL_TEAM typename Stored<type>::Type value(int64_t pixel, int32_t c) const {
    float x = level(view[pixel + c * stride]);
    x = x >= threshold ? top - x : x;
    if constexpr (type != OutputType::kUint8) {
      return narrowed<type>(fused(x, job.scale[c], job.shift[c]));
    } else if constexpr (Rules<semantics>::kLevels) {
      return uint8_t(x);
    } else {
      return uint8_t(clamped<float>(x, 1.0f) * 255.999f);
    }
  }
};

template <OutputType type, Semantics semantics, class Team>
FASTSSL_TEAM void write_as(const Team& team, const Finish<semantics>& finish) {
  using T = typename Stored<type>::Type;
  const Job& job = finish.job;
  const Output& out = job.output;
  const int64_t pixels = int64_t(job.settings.height) * job.settings.width;
  T* to = static_cast<T*>(out.data);
  if (out.pixel_stride == 3 && out.channel_stride == 1 && job.channels == 3) {
    write_run(team, to, 3 * pixels, [&](int64_t i) {
      const int64_t first = i / 3;
      return [&finish, pixel = first, c = int32_t(i - 3 * first)]() mutable {
        const T x = finish.template value<type>(pixel, c);
        c = c == 2 ? 0 : c + 1;
        pixel += c == 0;
        return x;
      };
    });
    return;
  }
  for (int32_t c = 0; c < job.channels; ++c) {
    T* plane = to + c * out.channel_stride;
    if (out.pixel_stride == 1) {
      write_run(team, plane, pixels, [&](int64_t i) {
        return
            [&finish, pixel = i, c]() mutable { return finish.template value<type>(pixel++, c); };
      });
    } else {
      team.for_each(pixels, [&](int64_t i) {
        plane[i * out.pixel_stride] = finish.template value<type>(i, c);
      });
    }
  }
}

template <Semantics semantics, class Team>
FASTSSL_TEAM void write_view(const Team& team, const Finish<semantics>& finish) {
  switch (finish.job.output.type) {
    case OutputType::kFloat32:
      return write_as<OutputType::kFloat32>(team, finish);
    case OutputType::kBFloat16:
      return write_as<OutputType::kBFloat16>(team, finish);
    case OutputType::kFloat16:
      return write_as<OutputType::kFloat16>(team, finish);
    case OutputType::kUint8:
      return write_as<OutputType::kUint8>(team, finish);
  }
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
