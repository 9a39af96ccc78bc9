// What the stages of a view on the CPU share: the arithmetic of each semantics as a policy, scratch
// memory, and the view between stages.
#pragma once

#include "augment/augment.h"
#include "augment/filter.h"
#include "common/half.h"
#include "common/simd_pixels.h"

namespace fastssl {
namespace augment {
namespace {

constexpr int kLane = kLanes<float>;

template <typename T>
constexpr T padded(T count) {
  return (count + 63) / 64 * 64;
}

// Memory is handed out from one piece, aligned to 64 bytes; with no piece it only counts.
struct Arena {
  char* base;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(base + used);
    used += padded<int64_t>(count * int64_t(sizeof(T)));
    return taken;
  }
};

// The view between stages: planes of `Sample`, row after row.
template <typename Sample>
struct Planes {
  Sample* data;
  int32_t channels, height, width;
  int64_t stride;  // from plane to plane

  Planes(const Job& job, Arena* arena)
      : channels(job.channels), height(job.settings.height), width(job.settings.width) {
    stride = padded<int64_t>(int64_t(height) * width);
    data = arena->take<Sample>(stride * channels);
  }
  Sample* plane(int32_t channel) const { return data + channel * stride; }
};

// Weighted sums in float32, as torch has them.
struct FloatSums {
  using Work = float;
  using Real = float;
  static constexpr bool kPillow = false;
  static float weight(float w) { return w; }
  static Vec<float> add(Vec<float> sum, Vec<float> x, float w) {
    return Math<Vec<float>>::fused(x, Math<Vec<float>>::set(w), sum);
  }
  static Vec<float> between_passes(Vec<float> sum) { return sum; }
};

// Whole levels throughout: sums are rounded to uint8 once.
struct TvUint8 : FloatSums {
  using Sample = uint8_t;
  static constexpr bool kLevels = true;
  static Vec<float> rounded(Vec<float> sum) {
    sum = sum > 0.0f ? sum : Vec<float>{};
    const Vec<float> most = Math<Vec<float>>::set(255);
    return round_even(sum < most ? sum : most);
  }
};

struct TvFloat : FloatSums {
  using Sample = float;
  static constexpr bool kLevels = false;
  static Vec<float> rounded(Vec<float> sum) { return sum; }
};

// Integer weights, and uint8 between the two passes of a resampling.
struct Pil {
  using Work = int32_t;
  using Real = double;
  using Sample = uint8_t;
  static constexpr bool kLevels = true;
  static constexpr bool kPillow = true;
  static int32_t weight(double w) { return pillow_weight(w); }
  // Unsigned, because lanes that nobody reads may overflow.
  static Vec<int32_t> add(Vec<int32_t> sum, Vec<int32_t> x, int32_t w) {
    using U = Vec<uint32_t>;
    return (Vec<int32_t>)((U)sum + (U)x * uint32_t(w));
  }
  static Vec<int32_t> between_passes(Vec<int32_t> sum) {
    const Vec<int32_t> level = (sum + (1 << (kPillowBits - 1))) >> kPillowBits;
    const Vec<int32_t> low = level > 0 ? level : Vec<int32_t>{};
    return low < 255 ? low : Vec<int32_t>{} + 255;
  }
  static Vec<int32_t> rounded(Vec<int32_t> sum) { return between_passes(sum); }
};

inline void load_samples(const uint8_t* from, int64_t count, float* to) {
  widen(from, 1, count, to);
}
inline void load_samples(const float* from, int64_t count, float* to) {
  __builtin_memcpy(to, from, sizeof(float) * size_t(count));
}
template <typename T>
inline void store_samples(const T* from, int64_t count, uint8_t* to) {
  narrow(from, count, to);
}
inline void store_samples(const float* from, int64_t count, float* to) {
  __builtin_memcpy(to, from, sizeof(float) * size_t(count));
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
