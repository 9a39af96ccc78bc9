// Pillow's way through its uint8 HSV: float64 arithmetic with some values rounded to float32, as
// its C code has them. D is double or Vec<double>; samples are whole levels of 0 to 255.
#pragma once

#include "augment/pixel.h"

namespace fastssl {
namespace augment {
namespace {

// How far torchvision turns the uint8 hue of a Pillow image: truncated, modulo 256.
FASTSSL_HD inline double pillow_turn(float hue) {
  return double(uint32_t(int32_t(double(hue) * 255.0)) & 255u);
}

template <class D>
FASTSSL_HD inline Pixel<D> pillow_turn_hue(const Pixel<D>& p, double turn) {
  const D zero = Math<D>::set(0), one = Math<D>::set(1);
  const D most = greatest<D>(greatest<D>(p.r, p.g), p.b);
  const D range = most - least<D>(least<D>(p.r, p.g), p.b);
  const auto gray = range == zero;
  const D divisor = gray ? one : range;
  const auto red = p.r == most, green = p.g == most;
  const D first = Math<D>::single((most - (red ? p.b : green ? p.r : p.g)) / divisor);
  const D second = Math<D>::single((most - (red ? p.g : green ? p.b : p.r)) / divisor);
  D hue = (red ? zero : green ? Math<D>::set(2) : Math<D>::set(4)) + first - second;
  hue = Math<D>::single(hue) / 6.0 + one;
  hue = Math<D>::single(hue >= one ? hue - one : hue);
  D h = Math<D>::floor(hue * 255.0);
  h = (gray ? zero : h) + turn;
  h = h >= Math<D>::set(256) ? h - 256.0 : h;
  const D s = Math<D>::floor(Math<D>::single(range / (gray ? one : most)) * 255.0);

  const D h6 = h * 6.0 / 255.0, i = Math<D>::floor(h6), f = Math<D>::single(h6 - i);
  const D fs = Math<D>::single(s / 255.0);
  const D v = most;
  const D w = Math<D>::floor(v * (one - fs) + 0.5);
  const D q = Math<D>::floor(v * (one - Math<D>::single(fs * f)) + 0.5);
  const D t = Math<D>::floor(v * (one - fs * (one - f)) + 0.5);
  const auto is1 = i == one, is2 = i == Math<D>::set(2), is3 = i == Math<D>::set(3);
  const auto is4 = i == Math<D>::set(4), is5 = i == Math<D>::set(5);  // 6 is 0 again
  return {is1   ? q
          : is2 ? w
          : is3 ? w
          : is4 ? t
                : v,
          is1   ? v
          : is2 ? v
          : is3 ? q
          : is4 ? w
          : is5 ? w
                : t,
          is1   ? w
          : is2 ? t
          : is3 ? v
          : is4 ? v
          : is5 ? q
                : w};
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
