// Taps and weights: of resampling along one axis, and of blurs. Nothing here sees a pixel.
#pragma once

#include "common/portable.h"

namespace fastssl {
namespace augment {
namespace {

// Consecutive source positions that one output position reads.
struct Taps {
  int32_t start, count;
};

template <typename R>
FASTSSL_HD inline R absolute(R x) {
  return x < 0 ? -x : x;
}

// Keys, "Cubic convolution interpolation", 1981: a = -1/2 with antialiasing, -3/4 without.
template <typename R>
FASTSSL_HD inline R cubic(R x, R a) {
  x = absolute(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// How `in` positions are resampled to `out`. R is the type the weights are computed in: float as
// torch does, double as Pillow does.
template <typename R>
struct Axis {
  int32_t in, out;
  bool bicubic, antialias;
  R scale, support, inverse;

  FASTSSL_HD Axis(int32_t in_, int32_t out_, bool bicubic_, bool antialias_)
      : in(in_), out(out_), bicubic(bicubic_), antialias(antialias_) {
    scale = R(in) / R(out);
    const R half = bicubic ? R(2) : R(1);
    support = scale >= 1 ? half * scale : half;
    inverse = scale >= 1 ? 1 / scale : R(1);
  }

  FASTSSL_HD Taps taps(int32_t o) const {
    if (antialias) {
      const R center = scale * (R(o) + R(0.5));
      const int32_t start = greatest(int32_t(center - support + R(0.5)), 0);
      return {start, least(int32_t(center + support + R(0.5)), in) - start};
    }
    const int32_t i = int32_t(floor_of(source(o)));
    const int32_t start = greatest(bicubic ? i - 1 : i, 0);
    return {start, least(bicubic ? i + 3 : i + 2, in) - start};
  }

  // `out` takes `taps.count` weights whose sum is 1.
  FASTSSL_HD void weights(int32_t o, Taps taps, R* out) const {
    if (antialias) {
      const R center = scale * (R(o) + R(0.5));
      R total = 0;
      for (int32_t k = 0; k < taps.count; ++k) {
        const R x = (R(k + taps.start) - center + R(0.5)) * inverse;
        out[k] = bicubic ? cubic(x, R(-0.5)) : greatest(1 - absolute(x), R(0));
        total += out[k];
      }
      for (int32_t k = 0; k < taps.count; ++k) out[k] /= total;
      return;
    }
    const R x = source(o);
    const int32_t i = int32_t(floor_of(x));
    const R t = x - R(i);
    if (!bicubic) {
      out[0] = taps.count == 1 ? R(1) : 1 - t;
      if (taps.count == 2) out[1] = t;
      return;
    }
    const R four[4] = {cubic(t + 1, R(-0.75)), cubic(t, R(-0.75)), cubic(1 - t, R(-0.75)),
                       cubic(2 - t, R(-0.75))};
    for (int32_t k = 0; k < taps.count; ++k) out[k] = 0;
    for (int32_t k = 0; k < 4; ++k) {  // beyond the border, its pixel again
      const int32_t at = least(greatest(i - 1 + k, 0), in - 1);
      out[at - taps.start] += four[k];
    }
  }

 private:
  FASTSSL_HD R source(int32_t o) const {
    const R x = fused(scale, R(o) + R(0.5), R(-0.5));
    return bicubic ? x : greatest(x, R(0));
  }
};

// Pillow keeps weights as integers with this many bits behind the point.
constexpr int kPillowBits = 22;

// Pillow 13 resamples columns before rows where that leaves it less to do; otherwise rows first.
// Between the two passes it rounds, so that the order shows. Found by experiment.
FASTSSL_HD inline bool pillow_down_first(int32_t in_height, int32_t in_width, int32_t out_height,
                                         int32_t out_width) {
  const int32_t less = in_height - out_height;
  return less > 0 && less > 2 * (in_width - out_width);
}

FASTSSL_HD inline int32_t pillow_weight(double w) {
  return int32_t(w * double(1 << kPillowBits) + (w < 0 ? -0.5 : 0.5));
}

// torchvision's Gaussian of `taps` points is cut beyond 4.5 sigma: less than 0.0005 levels in all.
FASTSSL_HD inline double gaussian_sigma(float sigma) {
  return sigma > 0.05f ? double(sigma) : 0.05;  // below, the centre alone has a weight
}
FASTSSL_HD inline int32_t gaussian_radius(int32_t taps, double s) {
  int32_t radius = taps / 2;
  if (4.5 * s < double(radius)) radius = int32_t(4.5 * s) + 1;
  return least(radius, taps / 2);
}
// Before its weights are divided by their sum.
FASTSSL_HD inline double gaussian_height(int32_t d, double s) {
  const double x = double(d) / s;
  return portable_exp(-0.5 * x * x);
}

// As weights[0 .. radius] from the centre outwards. Returns the radius.
FASTSSL_HD inline int32_t gaussian(int32_t taps, float sigma, float* weights) {
  const double s = gaussian_sigma(sigma);
  const int32_t radius = gaussian_radius(taps, s);
  double total = 1;
  for (int32_t d = 1; d <= radius; ++d) total += 2 * gaussian_height(d, s);
  weights[0] = float(1 / total);
  for (int32_t d = 1; d <= radius; ++d) weights[d] = float(gaussian_height(d, s) / total);
  return radius;
}

// The box that three times in a row makes Pillow's Gaussian: P. Gwosdek et al., "Theoretical
// foundations of Gaussian convolution by extended box filtering", 2011, equations 7, 11 and 14.
// Of the window around a position, `radius` pixels on either side count `inner` and the two beyond
// count `outer`, in units of 2^-24.
struct Box {
  int32_t radius;
  uint32_t inner, outer;
};

FASTSSL_HD inline Box pillow_box(float sigma) {
  sigma = least(greatest(0.0f, sigma), 1e4f);  // a box far wider than any view, and no overflow
  const float variance = sigma * sigma / 3;
  const float length = float(square_root(12.0 * double(variance) + 1.0));
  const float whole = float(floor_of((double(length) - 1.0) / 2.0));
  float part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance);
  part /= 6 * (variance - (whole + 1) * (whole + 1));
  const float reach = whole + part;
  const int32_t radius = int32_t(reach);
  const uint32_t inner = uint32_t(float(1 << 24) / (reach * 2 + 1));
  return {radius, inner, ((1u << 24) - uint32_t(2 * radius + 1) * inner) / 2};
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
