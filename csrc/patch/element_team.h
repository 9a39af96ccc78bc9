// Elements in memory, 16 bytes at a time where a row allows it, and how they become numbers.
#pragma once

#include "common/half.h"
#include "common/team.h"
#include "patch/divisor.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastssl {
namespace patch {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

// f(an element of the type).
template <class F>
auto with_type(DType type, const F& f) {
  switch (type) {
    case DType::kFloat64:
      return f(double());
    case DType::kFloat32:
      return f(float());
    case DType::kFloat16:
      return f(Half());
    default:
      return f(BFloat());
  }
}

// What an element is computed in.
template <class T>
struct ComputeOf {
  using Type = float;
};
template <>
struct ComputeOf<double> {
  using Type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::Type;

FASTSSL_TEAM inline float widened(float x) { return x; }
FASTSSL_TEAM inline double widened(double x) { return x; }
FASTSSL_TEAM inline float widened(uint8_t x) { return float(x); }
#ifdef __CUDACC__
FASTSSL_TEAM inline float widened(Half x) { return __half2float(__ushort_as_half(x.bits)); }
FASTSSL_TEAM inline float widened(BFloat x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}
FASTSSL_TEAM inline void narrow(float x, Half* to) {
  to->bits = __half_as_ushort(__float2half_rn(x));
}
FASTSSL_TEAM inline void narrow(float x, BFloat* to) {
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
#else
FASTSSL_TEAM inline float widened(Half x) { return from_float16(x.bits); }
FASTSSL_TEAM inline float widened(BFloat x) { return from_bfloat16(x.bits); }
FASTSSL_TEAM inline void narrow(float x, Half* to) { to->bits = to_float16(x); }
FASTSSL_TEAM inline void narrow(float x, BFloat* to) { to->bits = to_bfloat16(x); }
#endif
FASTSSL_TEAM inline void narrow(float x, float* to) { *to = x; }
FASTSSL_TEAM inline void narrow(double x, double* to) { *to = x; }

template <class T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  T x[kCount];
};

template <class T>
constexpr int kPackOf = 16 / int(sizeof(T));

// A pack as it is in memory, in whole registers, until its elements are wanted: a compiler keeps
// each element of a Pack in a register of its own.
template <class T, int kCount, bool kWhole = (sizeof(T) * kCount >= 4)>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Raw {
  uint32_t word[sizeof(T) * kCount / 4];

  FASTSSL_TEAM T operator[](int k) const {
    T x;
    if constexpr (sizeof(T) >= 4) {
      __builtin_memcpy(&x, &word[k * (sizeof(T) / 4)], sizeof(T));
    } else {
      constexpr int kEach = 4 / int(sizeof(T));
      const uint32_t bits = word[k / kEach] >> (k % kEach * 8 * int(sizeof(T)));
      if constexpr (sizeof(T) == 1) {
        x = uint8_t(bits);
      } else {
        x.bits = uint16_t(bits);
      }
    }
    return x;
  }
};
template <class T, int kCount>
struct Raw<T, kCount, false> {
  T element[kCount];
  FASTSSL_TEAM T operator[](int k) const { return element[k]; }
};

// Element `k` as a number.
template <class T, int kCount>
FASTSSL_TEAM inline Compute<T> number_at(const Raw<T, kCount>& x, int k) {
  return widened(x[k]);
}
#ifdef __CUDACC__
// The same with one instruction for bfloat16, two of the quickest for levels: the byte becomes the
// last of 2^23 + level.
template <int kCount>
FASTSSL_TEAM inline float number_at(const Raw<BFloat, kCount, true>& x, int k) {
  return __uint_as_float(k % 2 ? x.word[k / 2] & 0xffff0000u : x.word[k / 2] << 16);
}
template <int kCount>
FASTSSL_TEAM inline float number_at(const Raw<uint8_t, kCount, true>& x, int k) {
  return __uint_as_float(__byte_perm(x.word[k / 4], 0x4b000000u, 0x7440u | uint32_t(k % 4))) -
         8388608.0f;
}
#endif

template <int kCount, class T>
FASTSSL_TEAM inline Raw<T, kCount> load_raw(const T* from) {
  return *reinterpret_cast<const Raw<T, kCount>*>(from);
}

template <int kCount, class T>
FASTSSL_TEAM inline Pack<T, kCount> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, kCount>*>(from);
}
// Elements `stride` apart.
template <int kCount, class T>
FASTSSL_TEAM inline Pack<T, kCount> load_pack(const T* from, int64_t stride) {
  if constexpr (kCount == 1) {
    return {{from[0]}};
  } else {
    Pack<T, kCount> pack;
    FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) pack.x[k] = from[k * stride];
    return pack;
  }
}
template <class T, int kCount>
FASTSSL_TEAM inline void store_pack(T* to, const Pack<T, kCount>& pack) {
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

}  // namespace

// A tensor of three axes; strides count elements.
struct Rows {
  const void* data;
  int64_t stride[3];
};

// Images cut into patches, with what becomes of a pixel: x * scale + shift, by its channel.
constexpr int kChannelsByValue = 16;
struct Pixels {
  const void* data;
  int32_t source;  // a DType, or kUint8Source
  int32_t channels;
  int64_t batch_stride, apart[3];     // apart: from patch to patch, along each axis
  int32_t channel_stride, stride[3];  // inside a patch
  int32_t grid[3], patch[3];          // frames, rows, columns
  Divisor grid_rows, grid_columns;
  double scale[kChannelsByValue], shift[kChannelsByValue];
  float scale32[kChannelsByValue], shift32[kChannelsByValue];  // the same, rounded
  const double* table;  // [2, channels], where there are more channels than that

  FASTSSL_HD int32_t area() const { return patch[0] * patch[1] * patch[2]; }
  FASTSSL_HD int32_t width() const { return area() * channels; }
  FASTSSL_HD double scale_of(int32_t c) const { return table ? table[c] : scale[c]; }
  FASTSSL_HD double shift_of(int32_t c) const { return table ? table[channels + c] : shift[c]; }
  FASTSSL_HD void numbers_of(int32_t c, double* scales, double* shifts) const {
    *scales = scale_of(c);
    *shifts = shift_of(c);
  }
  FASTSSL_HD void numbers_of(int32_t c, float* scales, float* shifts) const {
    if (table) {
      *scales = float(table[c]);
      *shifts = float(table[channels + c]);
      return;
    }
    *scales = scale32[c];
    *shifts = shift32[c];
  }

  // Of the first pixel of patch `l` of a sample.
  FASTSSL_HD int64_t begin(int64_t sample, int64_t l) const {
    const int32_t line = grid_columns.quotient(int32_t(l)), frame = grid_rows.quotient(line);
    const int32_t row = line - frame * grid[1], column = int32_t(l) - line * grid[2];
    return sample * batch_stride + frame * apart[0] + row * apart[1] + column * apart[2];
  }
};
constexpr int32_t kUint8Source = 4;

// A plan on the device (ops/patch/plan.py).
struct DevicePlan {
  const int64_t *shuffle, *restore, *lengths;  // lengths may be null
  int64_t batch, length, keep;

  FASTSSL_HD int64_t kept(int64_t sample) const {
    return lengths ? least(greatest<int64_t>(lengths[sample], 0), keep) : keep;
  }
};

namespace {

// A number in a mixed radix, fastest digit first, and the place in memory that it stands for: how
// a thread goes through a patch without a division for every element. The last digit has no end.
template <int kDigits>
struct Odometer {
  int32_t digit[kDigits];
  int32_t offset;

  FASTSSL_TEAM void set(int32_t number, const int32_t* radix, const int32_t* stride) {
    offset = 0;
    FASTSSL_UNROLL for (int d = 0; d < kDigits; ++d) {
      const int32_t next = d + 1 < kDigits ? number / radix[d] : 0;
      digit[d] = number - (d + 1 < kDigits ? next * radix[d] : 0);
      number = next;
      offset += digit[d] * stride[d];
    }
  }

  FASTSSL_TEAM void add(const Odometer& step, const int32_t* radix, const int32_t* stride) {
    int32_t carry = 0;
    offset += step.offset;
    FASTSSL_UNROLL for (int d = 0; d < kDigits; ++d) {
      digit[d] += step.digit[d] + carry;
      if (d + 1 == kDigits) return;
      carry = digit[d] >= radix[d];
      if (carry) {
        digit[d] -= radix[d];
        offset += stride[d + 1] - radix[d] * stride[d];
      }
    }
  }

  // To the next number.
  FASTSSL_TEAM void next(const int32_t* radix, const int32_t* stride) {
    offset += stride[0];
    FASTSSL_UNROLL for (int d = 0; d < kDigits; ++d) {
      ++digit[d];
      if (d + 1 == kDigits || digit[d] < radix[d]) return;
      digit[d] = 0;
      offset += stride[d + 1] - radix[d] * stride[d];
    }
  }
};

}  // namespace
}  // namespace patch
}  // namespace fastssl
