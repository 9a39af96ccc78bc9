// The parameters of one view of one sample, drawn by counter: the same bits in C++, in CUDA and in
// ops/augment/reference_draw.py. Everything is float64 arithmetic that rounds once per operation.
#pragma once

#include "augment/augment.h"
#include "common/philox.h"

namespace fastssl {
namespace augment {
namespace {

// A recipe's numbers, in this order: ops/augment/recipe.py writes them.
struct Recipe {
  double scale[2], ratio[2], log_ratio[2];
  double flip, jitter;
  double brightness[2], contrast[2], saturation[2], hue[2];
  double gray, blur;
  double sigma[2];
  double solarize;
};
constexpr int kRecipeNumbers = sizeof(Recipe) / sizeof(double);
constexpr int kAttempts = 10;

FASTSSL_HD inline double between(const double (&range)[2], uint32_t word) {
  return range[0] + (range[1] - range[0]) * unit(word);
}

// torchvision's RandomResizedCrop: ten attempts at an area and an aspect ratio, then the largest
// central crop whose ratio is allowed.
FASTSSL_HD inline void draw_crop(const Recipe& recipe, const Draws& draws, int64_t height,
                                 int64_t width, Drawn* out) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const Words x = draws.block(3 + attempt);
    const double area = double(height * width) * between(recipe.scale, x.word[0]);
    const double aspect = portable_exp(between(recipe.log_ratio, x.word[1]));
    const double w = round_even(square_root(area * aspect));
    const double h = round_even(square_root(area / aspect));
    if (0 < w && w <= double(width) && 0 < h && h <= double(height)) {
      out->height = int32_t(h);
      out->width = int32_t(w);
      out->top = int32_t(below(x.word[2], uint64_t(height - out->height + 1)));
      out->left = int32_t(below(x.word[3], uint64_t(width - out->width + 1)));
      return;
    }
  }
  const double in_ratio = double(width) / double(height);
  double w = double(width), h = double(height);
  if (in_ratio < recipe.ratio[0]) {
    h = round_even(w / recipe.ratio[0]);
  } else if (in_ratio > recipe.ratio[1]) {
    w = round_even(h * recipe.ratio[1]);
  }
  out->height = int32_t(least(greatest(h, 1.0), double(height)));
  out->width = int32_t(least(greatest(w, 1.0), double(width)));
  out->top = int32_t((height - out->height) / 2);
  out->left = int32_t((width - out->width) / 2);
}

// The permutation of 0, 1, 2, 3 with this number in lexicographic order.
FASTSSL_HD inline void permutation(uint32_t number, int8_t (&out)[4]) {
  int8_t left[4] = {0, 1, 2, 3};
  uint32_t count = 6;
  for (int place = 0; place < 4; ++place) {
    const uint32_t pick = number / count;
    number %= count;
    out[place] = left[pick];
    for (int k = int(pick); k < 3; ++k) left[k] = left[k + 1];
    if (place < 3) count /= uint32_t(3 - place);
  }
}

FASTSSL_HD inline Drawn draw(const Recipe& recipe, const Draws& draws, int64_t height,
                             int64_t width) {
  const Words x = draws.block(0), y = draws.block(1), z = draws.block(2);
  Drawn d;
  draw_crop(recipe, draws, height, width, &d);
  d.flip = unit(x.word[0]) < recipe.flip;
  d.jitter = unit(x.word[1]) < recipe.jitter;
  d.gray = unit(x.word[2]) < recipe.gray;
  d.blur = unit(x.word[3]) < recipe.blur;
  d.solarize = unit(y.word[0]) < recipe.solarize;
  permutation(below(y.word[1], 24), d.order);
  d.brightness = float(between(recipe.brightness, y.word[2]));
  d.contrast = float(between(recipe.contrast, y.word[3]));
  d.saturation = float(between(recipe.saturation, z.word[0]));
  d.hue = float(between(recipe.hue, z.word[1]));
  d.sigma = float(between(recipe.sigma, z.word[2]));
  return d;
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
