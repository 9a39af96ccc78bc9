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
  struct alignas(16) Part {
    T x[kPack];
  };
  // Packs lie at multiples of 16 bytes; at either end some of their elements are not ours.
  const int64_t before = int64_t(reinterpret_cast<uintptr_t>(to) % 16 / sizeof(T));
  team.for_each((before + count + kPack - 1) / kPack, [&](int64_t i) {
    const int64_t first = i * kPack - before;
    if (first >= 0 && first + kPack <= count) {
      auto next = start(first);
      Part part;
      FASTSSL_UNROLL for (int k = 0; k < kPack; ++k) part.x[k] = next();
      *reinterpret_cast<Part*>(to + first) = part;
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
  FASTSSL_TEAM float number(float x, float scale, float shift) const {
    if constexpr (type != OutputType::kUint8) return fused(x, scale, shift);
    if constexpr (Rules<semantics>::kLevels) return x;
    return floor_of_level(clamped<float>(x, 1.0f) * 255.999f);
  }

  template <OutputType type>
  FASTSSL_TEAM typename Stored<type>::Type value(int64_t pixel, int32_t c) const {
    float x = level(view[pixel + c * stride]);
    x = x >= threshold ? top - x : x;
    return narrowed<type>(number<type>(x, job.scale[c], job.shift[c]));
  }

  // Of `kCount` pixels, whole quads, that begin at a multiple of as many.
  template <OutputType type, int kCount>
  FASTSSL_TEAM void values(int64_t pixel, int32_t c, float scale, float shift,
                           float (&out)[kCount]) const {
    const Sample* from = view + c * stride + pixel;
    FASTSSL_UNROLL for (int n = 0; n < kCount; n += kQuad) {
      float x[kQuad];
      load_quad(from + n, x);
      FASTSSL_UNROLL for (int k = 0; k < kQuad; ++k) out[n + k] = x[k];
    }
    if (threshold < 3e38f) {
      FASTSSL_UNROLL for (float& x : out) x = x >= threshold ? top - x : x;
    }
    FASTSSL_UNROLL for (float& x : out) x = number<type>(x, scale, shift);
  }
};

// 16 bytes of numbers, as they lie in an output.
template <OutputType type>
struct Pack {
  static constexpr int kCount = 16 / int(sizeof(typename Stored<type>::Type));
  alignas(16) uint32_t word[4];

  FASTSSL_TEAM void set(int i, float x, float next) {  // numbers i, even, and i + 1
    if constexpr (type == OutputType::kFloat32) {
#ifdef __CUDA_ARCH__
      word[i] = __float_as_uint(x);
      word[i + 1] = __float_as_uint(next);
#else
      __builtin_memcpy(word + i, &x, 4);
      __builtin_memcpy(word + i + 1, &next, 4);
#endif
    } else if constexpr (type == OutputType::kUint8) {
      if (i % 4 == 0) word[i / 4] = 0;
#ifdef __CUDA_ARCH__
      const uint32_t pair = __float_as_uint(fmaf(next, 256.0f, x + 0x1p23f)) & 0xffffu;
#else
      const uint32_t pair = uint32_t(x) | uint32_t(next) << 8;
#endif
      word[i / 4] |= pair << (i % 4 * 8);
    } else {
#ifdef __CUDA_ARCH__
      if constexpr (type == OutputType::kBFloat16) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(x, next);
        word[i / 2] = reinterpret_cast<const uint32_t&>(pair);
      } else {
        const __half2 pair = __floats2half2_rn(x, next);
        word[i / 2] = reinterpret_cast<const uint32_t&>(pair);
      }
#else
      word[i / 2] = uint32_t(narrowed<type>(x)) | uint32_t(narrowed<type>(next)) << 16;
#endif
    }
  }
};

// A view whose channels lie side by side and that begins at a multiple of 16 bytes.
template <OutputType type, Semantics semantics, class Team>
FASTSSL_TEAM void write_interleaved(const Team& team, const Finish<semantics>& finish,
                                    int64_t pixels) {
  constexpr int kCount = Pack<type>::kCount;
  auto* to = static_cast<Pack<type>*>(finish.job.output.data);
  float scale[3], shift[3];
  FASTSSL_UNROLL for (int c = 0; c < 3; ++c) scale[c] = finish.job.scale[c];
  FASTSSL_UNROLL for (int c = 0; c < 3; ++c) shift[c] = finish.job.shift[c];
  team.for_each(pixels / kCount, [&](int64_t n) {
    float x[3][kCount];
    FASTSSL_UNROLL for (int c = 0; c < 3; ++c) {
      finish.template values<type, kCount>(n * kCount, c, scale[c], shift[c], x[c]);
    }
    FASTSSL_UNROLL for (int part = 0; part < 3; ++part) {
      Pack<type> pack;
      FASTSSL_UNROLL for (int i = 0; i < kCount; i += 2) {
        const int at = part * kCount + i;
        pack.set(i, x[at % 3][at / 3], x[(at + 1) % 3][(at + 1) / 3]);
      }
      to[3 * n + part] = pack;
    }
  });
}

// A view whose planes lie one after the other, each from a multiple of 16 bytes on.
template <OutputType type, Semantics semantics, class Team>
FASTSSL_TEAM void write_planes(const Team& team, const Finish<semantics>& finish, int64_t pixels) {
  constexpr int kCount = Pack<type>::kCount;
  const Job& job = finish.job;
  for (int32_t c = 0; c < job.channels; ++c) {
    const float scale = job.scale[c], shift = job.shift[c];
    auto* to = reinterpret_cast<Pack<type>*>(
        static_cast<typename Stored<type>::Type*>(job.output.data) + c * job.output.channel_stride);
    team.for_each(pixels / kCount, [&](int64_t n) {
      float x[kCount];
      finish.template values<type, kCount>(n * kCount, c, scale, shift, x);
      Pack<type> pack;
      FASTSSL_UNROLL for (int i = 0; i < kCount; i += 2) pack.set(i, x[i], x[i + 1]);
      to[n] = pack;
    });
  }
}

template <OutputType type, Semantics semantics, class Team>
FASTSSL_TEAM void write_as(const Team& team, const Finish<semantics>& finish) {
  using T = typename Stored<type>::Type;
  constexpr int kCount = Pack<type>::kCount;
  const Job& job = finish.job;
  const Output& out = job.output;
  const int64_t pixels = int64_t(job.settings.height) * job.settings.width;
  T* to = static_cast<T*>(out.data);
  const bool interleaved = out.pixel_stride == 3 && out.channel_stride == 1 && job.channels == 3;
  if (reinterpret_cast<uintptr_t>(to) % 16 == 0 && pixels % kCount == 0) {
    if (interleaved) return write_interleaved<type>(team, finish, pixels);
    if (out.pixel_stride == 1 && out.channel_stride % kCount == 0) {
      return write_planes<type>(team, finish, pixels);
    }
  }
  const int32_t together = interleaved ? 3 : 1;  // channels in a run
  for (int32_t base = 0; base < job.channels; base += together) {
    T* run = to + base * out.channel_stride;
    if (out.pixel_stride != together) {
      team.for_each(pixels, [&](int64_t i) {
        run[i * out.pixel_stride] = finish.template value<type>(i, base);
      });
      continue;
    }
    write_run(team, run, together * pixels, [&](int64_t i) {
      const int64_t first = interleaved ? i / 3 : i;
      return [&finish, base, together, pixel = first,
              c = base + int32_t(i - together * first)]() mutable {
        const T x = finish.template value<type>(pixel, c);
        if (++c == base + together) {
          c = base;
          ++pixel;
        }
        return x;
      };
    });
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
