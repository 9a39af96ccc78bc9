// The arithmetic of each semantics for one sample, one pixel, one thread of a team.
#pragma once

#include "augment/augment.h"
#include "augment/filter.h"
#include "augment/hue_team.h"
#include "augment/pixel_pillow.h"
#include "augment/quad_team.h"
#include "augment/steps.h"
#include "common/team.h"

namespace fastssl {
namespace augment {
namespace {

// Sample is what the view holds between stages, Sum a thread's part of a mean (levels of 2^24
// pixels fit), Work what is summed, Real what weights come from.
struct FloatSums {
  using Work = float;
  using Real = float;
  FASTSSL_TEAM static float weight(float w) { return w; }
  FASTSSL_TEAM static float add(float sum, float x, float w) { return fused(x, w, sum); }
  FASTSSL_TEAM static float between_passes(float sum) { return sum; }
};

template <Semantics semantics>
struct Rules;

template <>
struct Rules<Semantics::kTvUint8> : FloatSums {
  using Sample = uint8_t;
  using Sum = uint32_t;
  static constexpr bool kLevels = true, kPillow = false;
  FASTSSL_TEAM static float rounded(float sum) { return (sum + 0x1p23f) - 0x1p23f; }
  // Of what negative weights have made.
  FASTSSL_TEAM static float inside(float x) { return bounded(x, 255.0f); }
};

template <>
struct Rules<Semantics::kTvFloat> : FloatSums {
  using Sample = float;
  using Sum = int64_t;
  static constexpr bool kLevels = false, kPillow = false;
  FASTSSL_TEAM static float rounded(float sum) { return sum; }
  FASTSSL_TEAM static float inside(float x) { return x; }
};

template <>
struct Rules<Semantics::kPil> {
  using Sample = uint8_t;
  using Sum = uint32_t;
  using Work = int32_t;
  using Real = double;
  static constexpr bool kLevels = true, kPillow = true;
  FASTSSL_TEAM static int32_t weight(double w) { return pillow_weight(w); }
  FASTSSL_TEAM static int32_t add(int32_t sum, int32_t x, int32_t w) { return sum + x * w; }
  FASTSSL_TEAM static int32_t between_passes(int32_t sum) {
    const int32_t x = (sum + (1 << (kPillowBits - 1))) >> kPillowBits;
    return least(greatest(x, 0), 255);
  }
  FASTSSL_TEAM static float rounded(int32_t sum) { return float(between_passes(sum)); }
  FASTSSL_TEAM static float inside(float x) { return x; }
};

// A sample of the image, in the type of the sums.
template <class R>
FASTSSL_TEAM inline typename R::Work load_sample(const uint8_t* from) {
#ifdef __CUDA_ARCH__
  const uint8_t x = __ldg(from);
#else
  const uint8_t x = *from;
#endif
  if (R::kPillow) return typename R::Work(x);
  return typename R::Work(R::kLevels ? level(x) : level(x) * float(1.0 / 255.0));
}

template <class R>
FASTSSL_TEAM inline typename R::Work load_sample(const float* from) {
#ifdef __CUDA_ARCH__
  const float x = __ldg(from);
#else
  const float x = *from;
#endif
  // torchvision's conversion of float to uint8
  return typename R::Work(R::kLevels ? floor_of(clamped<float>(x, 1.0f) * 255.999f) : x);
}

template <Semantics semantics>
struct Colors {
  static constexpr bool kLevels = Rules<semantics>::kLevels, kPillow = Rules<semantics>::kPillow;

  // truncated(clamped()) of pixel.h.
  FASTSSL_TEAM static float finished(float x) {
    return kLevels ? floor_of_level(bounded(x, 255.0f)) : clamped<float>(x, 1.0f);
  }

  FASTSSL_TEAM static float gray(const Pixel<float>& p) {
    if (kPillow) {
      const float y = p.r * 19595.0f + p.g * 38470.0f + p.b * 7471.0f + 32768.0f;
      return floor_of_level(y * 0x1p-16f);
    }
    if (!kLevels) return luma<false, float>(p);
    return floor_of_level(fused(p.b, 0.114f, fused(p.g, 0.587f, p.r * 0.2989f)));
  }

  FASTSSL_TEAM static float mean(double sum, double count) {
    return kPillow ? float(floor_of(sum / count + 0.5)) : float(sum) / float(count);
  }

  FASTSSL_TEAM static float blended(float x, float other, const Step& s) {
    return finished(kPillow ? other + (x - other) * s.factor : fused(other, s.rest, x * s.factor));
  }

  FASTSSL_TEAM static void hue(Pixel<float> (&p)[kQuad], float turn) {
    if constexpr (kLevels && !kPillow) {
      FASTSSL_UNROLL for (auto& q : p) q = turn_levels(q, turn);
    } else {
      Pixel<float> four[kQuad] = {p[0], p[1], p[2], p[3]};
      slow_hue(four, turn);
      FASTSSL_UNROLL for (int k = 0; k < kQuad; ++k) p[k] = four[k];
    }
  }

  // Long, and with divisions that need care.
  FASTSSL_COLD static void slow_hue(Pixel<float>* p, float turn) {
    FASTSSL_ROLLED for (int k = 0; k < kQuad; ++k) {
      if constexpr (kPillow) {
        const Pixel<double> q =
            pillow_turn_hue<double>({p[k].r, p[k].g, p[k].b}, pillow_turn(turn));
        p[k] = {float(q.r), float(q.g), float(q.b)};
      } else {
        p[k] = turn_hue<false, float>(p[k], turn);
      }
    }
  }

  // Steps [begin, end) on pixels.
  FASTSSL_TEAM static void run(Pixel<float> (&p)[kQuad], const Steps& steps, int32_t begin,
                               int32_t end, float mean) {
    FASTSSL_ROLLED for (int32_t i = begin; i < end; ++i) {
      const Step s = steps.step[i];
      if (s.kind == kHue) {
        hue(p, s.factor);
      } else if (s.kind == kBrightness && !kPillow) {
        FASTSSL_UNROLL for (auto& q : p) {
          q = {finished(q.r * s.factor), finished(q.g * s.factor), finished(q.b * s.factor)};
        }
      } else if (s.kind == kGray) {
        FASTSSL_UNROLL for (auto& q : p) q.r = q.g = q.b = gray(q);
      } else {
        const float flat = s.kind == kContrast ? mean : 0;
        FASTSSL_UNROLL for (auto& q : p) {
          const float other = s.kind == kSaturation ? gray(q) : flat;
          q = {blended(q.r, other, s), blended(q.g, other, s), blended(q.b, other, s)};
        }
      }
    }
  }
};

// Gray levels are summed as integers: exact, in whatever order. Fractions in units of 2^-36.
template <Semantics semantics>
FASTSSL_TEAM inline typename Rules<semantics>::Sum summand(float gray) {
  if constexpr (!Rules<semantics>::kLevels) {
    return int64_t(least(greatest(gray, -8.0f), 8.0f) * 0x1p36f);
  }
#ifdef __CUDA_ARCH__
  return __float_as_uint(gray + 0x1p23f) & 0x7fffffu;
#else
  return int32_t(gray);
#endif
}

template <Semantics semantics>
FASTSSL_TEAM inline double of_summands(int64_t sum) {
  return Rules<semantics>::kLevels ? double(sum) : double(sum) * 0x1p-36;
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
