// Rows of float64, float32, float16 or bfloat16 elements, at any stride, to and from a buffer of
// the type a kernel computes in. No torch, no libc: usable in files compiled once per instruction
// set.
#pragma once

#include <stdint.h>

namespace fastssl {

enum class DType { kFloat64, kFloat32, kFloat16, kBFloat16 };

namespace {

inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_bfloat16(uint16_t h) { return bits_to_float(uint32_t(h) << 16); }

// Round to nearest even; NaN keeps its sign and becomes quiet.
inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return uint16_t(value != value ? (bits >> 16) | 0x40 : rounded);
}

// Multiplying by 2^112 moves the exponent and normalises subnormals in one exact step.
inline float from_float16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(h & 0x7fff) << 13;
  const uint32_t special = (h & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
  return bits_to_float(sign | special | float_to_bits(bits_to_float(magnitude) * 0x1p112f));
}

inline uint16_t to_float16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {  // subnormal: let the addition round at the right bit
    return uint16_t(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000));
  }
  return uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
}

template <typename T>
inline void load_row(const void* data, DType dtype, int64_t offset, int64_t stride, int64_t count,
                     T* out) {
  switch (dtype) {
    case DType::kFloat64: {
      const double* x = static_cast<const double*>(data) + offset;
      for (int64_t k = 0; k < count; ++k) out[k] = T(x[k * stride]);
      break;
    }
    case DType::kFloat32: {
      const float* x = static_cast<const float*>(data) + offset;
      if (stride == 1) {
        for (int64_t k = 0; k < count; ++k) out[k] = T(x[k]);
      } else {
        for (int64_t k = 0; k < count; ++k) out[k] = T(x[k * stride]);
      }
      break;
    }
    case DType::kFloat16: {
      const uint16_t* x = static_cast<const uint16_t*>(data) + offset;
      for (int64_t k = 0; k < count; ++k) out[k] = T(from_float16(x[k * stride]));
      break;
    }
    case DType::kBFloat16: {
      const uint16_t* x = static_cast<const uint16_t*>(data) + offset;
      for (int64_t k = 0; k < count; ++k) out[k] = T(from_bfloat16(x[k * stride]));
      break;
    }
  }
}

template <typename T>
inline void store_row(const T* row, int64_t count, DType dtype, void* data, int64_t offset) {
  switch (dtype) {
    case DType::kFloat64: {
      double* x = static_cast<double*>(data) + offset;
      for (int64_t k = 0; k < count; ++k) x[k] = double(row[k]);
      break;
    }
    case DType::kFloat32: {
      float* x = static_cast<float*>(data) + offset;
      for (int64_t k = 0; k < count; ++k) x[k] = float(row[k]);
      break;
    }
    case DType::kFloat16: {
      uint16_t* x = static_cast<uint16_t*>(data) + offset;
      for (int64_t k = 0; k < count; ++k) x[k] = to_float16(float(row[k]));
      break;
    }
    case DType::kBFloat16: {
      uint16_t* x = static_cast<uint16_t*>(data) + offset;
      for (int64_t k = 0; k < count; ++k) x[k] = to_bfloat16(float(row[k]));
      break;
    }
  }
}

}  // namespace
}  // namespace fastssl
