// The pixels of one patch, channel after channel, and their statistics.
#pragma once

#include "common/portable.h"
#include "common/simd.h"
#include "patch/patch.h"

namespace fastssl {
namespace patch {
namespace {

inline int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

template <typename T>
constexpr DType kDType = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float number(uint8_t x) { return float(x); }
inline float number(float x) { return x; }
inline double number(double x) { return x; }
inline float number(Float16 x) { return from_float16(x.bits); }
inline float number(BFloat16 x) { return from_bfloat16(x.bits); }

template <typename T, class Source>
inline void load_channel(const Images& images, const Source* from, T* to) {
  const int64_t count = images.patch[2], step = images.stride[2];
  for (int64_t frame = 0; frame < images.patch[0]; ++frame) {
    for (int64_t row = 0; row < images.patch[1]; ++row, to += count) {
      const Source* x = from + frame * images.stride[0] + row * images.stride[1];
      if (step == 1) {
        for (int64_t i = 0; i < count; ++i) to[i] = T(number(x[i]));
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = T(number(x[i * step]));
      }
    }
  }
}

// Patch `l` of sample `b`, to [channels, area].
template <typename T, class Source>
inline void load_patch(const Images& images, int64_t b, int64_t l, T* to) {
  const Source* from =
      static_cast<const Source*>(images.data) + b * images.batch_stride + images.offset(l);
  const int64_t area = images.area();
  for (int64_t c = 0; c < images.channels; ++c) {
    load_channel(images, from + c * images.channel_stride, to + c * area);
  }
}

template <typename T>
inline void load_patch(const Images& images, int64_t b, int64_t l, T* to) {
  if (images.is_uint8) return load_patch<T, uint8_t>(images, b, l, to);
  switch (images.dtype) {
    case DType::kFloat64:
      return load_patch<T, double>(images, b, l, to);
    case DType::kFloat32:
      return load_patch<T, float>(images, b, l, to);
    case DType::kFloat16:
      return load_patch<T, Float16>(images, b, l, to);
    case DType::kBFloat16:
      return load_patch<T, BFloat16>(images, b, l, to);
  }
}

// x * scale + shift.
template <typename T>
inline void affine(T* x, int64_t count, T scale, T shift) {
  if (scale == 1 && shift == 0) return;
  for (int64_t i = 0; i < count; ++i) x[i] = x[i] * scale + shift;
}

// [channels, area] to [area, channels].
template <typename T>
inline void interleave(const T* from, int64_t channels, int64_t area, T* to) {
  if (channels == 3) {
    const T *a = from, *b = from + area, *c = from + 2 * area;
    for (int64_t i = 0; i < area; ++i) {
      to[3 * i] = a[i];
      to[3 * i + 1] = b[i];
      to[3 * i + 2] = c[i];
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < area; ++i) to[i * channels + c] = from[c * area + i];
  }
}

struct Sums {
  double first = 0, second = 0;
};

// Of x - centre and of its square. Of whole numbers up to 255 exactly: a lane adds up 256 squares
// at most, which is below 2^24, before it is added to the rest in float64.
template <typename T>
inline Sums sums(const T* x, int64_t count, T centre) {
  Sums total;
  int64_t i = 0;
  while (i + kLanes<T> <= count) {
    Vec<T> first{}, second{};
    const int64_t end = least<int64_t>(count, i + 256 * kLanes<T>);
    for (; i + kLanes<T> <= end; i += kLanes<T>) {
      const Vec<T> d = load<T>(x + i) - centre;
      first += d;
      second += d * d;
    }
    for (int k = 0; k < kLanes<T>; ++k) {
      total.first += double(first[k]);
      total.second += double(second[k]);
    }
  }
  for (; i < count; ++i) {
    const double d = double(x[i]) - double(centre);
    total.first += d;
    total.second += d * d;
  }
  return total;
}

// Sums about a centre close to the mean, so that little cancels in what follows from them.
template <typename T>
struct Moments {
  T centre;
  Sums about;
};

template <typename T>
inline Moments<T> moments(const T* x, int64_t count, bool whole) {
  const Sums raw = sums<T>(x, count, 0);
  const double n = double(count), mean = raw.first / n;
  if (!whole) {
    const T centre = T(mean);
    return {centre, sums<T>(x, count, centre)};
  }
  const double k = round_even(mean);  // all exact: sums of whole numbers below 2^53
  return {T(k), {raw.first - n * k, raw.second - 2 * k * raw.first + n * k * k}};
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
