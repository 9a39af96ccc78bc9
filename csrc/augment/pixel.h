// What happens to the colour of one pixel, or of a vector of pixels: V is float or Vec<float>.
// Samples are whole levels of 0 to 255 held in floats, or in [0, 1] in the float semantics.
//
// torchvision: every product and sum rounds on its own but for the additions with a factor, which
// torch fuses.
#pragma once

#include "common/portable.h"

namespace fastssl {
namespace augment {
namespace {

template <class V>
struct Pixel {
  V r, g, b;
};

template <class V>
FASTSSL_HD inline V clamped(V x, float bound) {
  return least<V>(greatest<V>(x, Math<V>::set(0)), Math<V>::set(bound));
}

template <bool levels, class V>
FASTSSL_HD inline V truncated(V x) {
  return levels ? Math<V>::floor(x) : x;
}

// torchvision's blend with `other`, after the truncation to uint8 where `levels`.
template <bool levels, class V>
FASTSSL_HD inline V blend(V x, V other, float factor, float rest) {
  const V y = Math<V>::fused(other, Math<V>::set(rest), x * factor);
  return truncated<levels, V>(clamped<V>(y, levels ? 255.0f : 1.0f));
}

template <bool levels, class V>
FASTSSL_HD inline V brighten(V x, float factor) {
  return truncated<levels, V>(clamped<V>(x * factor, levels ? 255.0f : 1.0f));
}

template <bool levels, class V>
FASTSSL_HD inline V luma(const Pixel<V>& p) {
  const V y = Math<V>::fused(p.g, Math<V>::set(0.587f), p.r * 0.2989f);
  return truncated<levels, V>(Math<V>::fused(p.b, Math<V>::set(0.114f), y));
}

// Through hue, saturation and value in [0, 1], turned by `turn` of a circle.
template <bool levels, class V>
FASTSSL_HD inline Pixel<V> turn_hue(const Pixel<V>& p, float turn) {
  const V zero = Math<V>::set(0), one = Math<V>::set(1);
  const float unit = levels ? float(1.0 / 255.0) : 1.0f;
  const V r = p.r * unit, g = p.g * unit, b = p.b * unit;
  const V most = greatest<V>(greatest<V>(r, g), b), range = most - least<V>(least<V>(r, g), b);
  const auto gray = range == zero;
  const V s = range / (gray ? one : most), divisor = gray ? one : range;
  // (first - second) / range lies in [-1, 1] about the axis of the largest channel.
  const auto red = most == r, green = most == g;
  const V first = (most - (red ? b : green ? r : g)) / divisor;
  const V second = (most - (red ? g : green ? b : r)) / divisor;
  V h = (first + (red ? zero : green ? Math<V>::set(2) : Math<V>::set(4))) - second;
  h = h * float(1.0 / 6.0) + one;
  h = h >= one ? h - one : h;
  h = h + turn;
  h = h < zero ? h + one : h;
  h = h >= one ? h - one : h;

  const V h6 = h * 6.0f, i = Math<V>::floor(h6), f = h6 - i;
  const V sf = s * f, rest = one - s;
  const V v = most;
  const V q = clamped<V>((one - sf) * v, 1.0f);
  const V t = clamped<V>((sf + rest) * v, 1.0f);
  const V w = clamped<V>(rest * v, 1.0f);
  const auto is1 = i == one, is2 = i == Math<V>::set(2), is3 = i == Math<V>::set(3);
  const auto is4 = i == Math<V>::set(4), is5 = i == Math<V>::set(5);  // 6 is 0 again
  const V red_out = is1 ? q : is2 ? w : is3 ? w : is4 ? t : v;
  const V green_out = is1 ? v : is2 ? v : is3 ? q : is4 ? w : is5 ? w : t;
  const V blue_out = is1 ? w : is2 ? t : is3 ? v : is4 ? v : is5 ? q : w;
  const float top = levels ? 255.999f : 1.0f;
  return {truncated<levels, V>(red_out * top), truncated<levels, V>(green_out * top),
          truncated<levels, V>(blue_out * top)};
}

// Pillow's blend: towards `other` at 0, past the image above 1, truncated.
template <class V>
FASTSSL_HD inline V pillow_blend(V x, V other, float factor) {
  return Math<V>::floor(clamped<V>(other + (x - other) * factor, 255.0f));
}

// ITU-R 601 luma in units of 2^-16, rounded; exact in float32.
template <class V>
FASTSSL_HD inline V pillow_luma(const Pixel<V>& p) {
  return Math<V>::floor((p.r * 19595.0f + p.g * 38470.0f + p.b * 7471.0f + 32768.0f) * 0x1p-16f);
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
