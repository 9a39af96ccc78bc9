// The seam between the operator (torch on one side) and its kernels (raw pointers on the other).
//
// In this folder *_cpu.* is the CPU's code, *_team.h the algorithm that a team of GPU threads runs
// (and augment_team.cpp, in tests, threads played on the CPU), *_cuda.* and kernel.cu what launches
// it. draw.h, filter.h, steps.h and pixel*.h are the definitions all of them share, operator.h what
// the operators check.
#pragma once

#include <stdint.h>

#include "common/portable.h"

namespace fastssl {
namespace augment {

// Whose arithmetic is followed: torchvision's on uint8 or on float tensors, or Pillow's.
enum class Semantics { kTvUint8, kTvFloat, kPil };
enum class OutputType { kFloat32, kBFloat16, kFloat16, kUint8 };
enum Op { kBrightness, kContrast, kSaturation, kHue };

// One image: uint8, or float32 in [0, 1]; strides in elements.
struct Image {
  const void* data;
  bool is_float;
  int64_t height, width;
  int64_t channel_stride, row_stride, column_stride;
};

// What all views of one place in the list of views have in common.
struct Settings {
  int32_t height, width;
  bool bicubic, antialias, gray_first;
  int32_t blur_taps;           // 0: Pillow's box blur
  int32_t solarize_threshold;  // a level of 0 to 255
};

// What was drawn for one view of one image.
struct Drawn {
  int32_t top, left, height, width;
  bool flip, jitter, gray, blur, solarize;
  int8_t order[4];  // of Op
  float brightness, contrast, saturation, hue, sigma;
};

// All that was drawn, as the tensors hold it: geometry [4, V, B], gates [5, V, B], order [V, B, 4],
// factors [5, V, B].
struct Params {
  int32_t* geometry;
  bool* gates;
  int8_t* order;
  float* factors;
  int64_t views, batch;

  FASTSSL_HD Drawn get(int64_t view, int64_t sample) const {
    const int64_t i = view * batch + sample, n = views * batch;
    const int8_t* o = order + 4 * i;
    return {geometry[i],
            geometry[i + n],
            geometry[i + 2 * n],
            geometry[i + 3 * n],
            gates[i],
            gates[i + n],
            gates[i + 2 * n],
            gates[i + 3 * n],
            gates[i + 4 * n],
            {o[0], o[1], o[2], o[3]},
            factors[i],
            factors[i + n],
            factors[i + 2 * n],
            factors[i + 3 * n],
            factors[i + 4 * n]};
  }

  FASTSSL_HD void set(int64_t view, int64_t sample, const Drawn& d) const {
    const int64_t i = view * batch + sample, n = views * batch;
    const int32_t box[4] = {d.top, d.left, d.height, d.width};
    const bool gate[5] = {d.flip, d.jitter, d.gray, d.blur, d.solarize};
    const float factor[5] = {d.brightness, d.contrast, d.saturation, d.hue, d.sigma};
    for (int k = 0; k < 4; ++k) geometry[i + k * n] = box[k];
    for (int k = 0; k < 4; ++k) order[4 * i + k] = d.order[k];
    for (int k = 0; k < 5; ++k) gates[i + k * n] = gate[k];
    for (int k = 0; k < 5; ++k) factors[i + k * n] = factor[k];
  }
};

// One view to be written. A pixel's samples lie at pixel * pixel_stride + channel * channel_stride,
// pixels counted row by row. Stored is level * scale + shift, level in 0 to 255 (0 to 1 in the
// float semantics).
struct Output {
  void* data;
  OutputType type;
  int64_t pixel_stride, channel_stride;
};

struct Job {
  Image image;
  Settings settings;
  Drawn drawn;
  Output output;
  Semantics semantics;
  int32_t channels;  // 1 or 3
  float scale[3], shift[3];
};

// One table per instruction set. `scratch` is 64-byte aligned.
struct Kernels {
  int64_t (*scratch_bytes)(const Job&);
  void (*view)(const Job&, void* scratch);
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

}  // namespace augment
}  // namespace fastssl
