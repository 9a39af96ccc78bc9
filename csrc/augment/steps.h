// What is done to the colours of a view, in order.
#pragma once

#include "augment/augment.h"

namespace fastssl {
namespace augment {
namespace {

struct Step {
  int32_t kind;        // of Op, or one of the two below
  float factor, rest;  // `rest` of a blend is 1 - factor, rounded as torchvision rounds it
};
constexpr int32_t kGray = 4, kSolarize = 5;

// What the recipe and the draw ask of this view, without the steps that would change nothing.
struct Steps {
  Step step[6];
  int32_t count;

  FASTSSL_HD void add(int32_t kind, float factor) {
    step[count++] = {kind, factor, float(1.0 - double(factor))};
  }

  FASTSSL_HD void read(const Job& job) {
    const Drawn& d = job.drawn;
    const bool colored = job.channels == 3;
    count = 0;
    if (d.gray && colored && job.settings.gray_first) add(kGray, 0);
    for (int i = 0; d.jitter && i < 4; ++i) {
      const int op = d.order[i];
      const float factor = op == kBrightness   ? d.brightness
                           : op == kContrast   ? d.contrast
                           : op == kSaturation ? d.saturation
                                               : d.hue;
      const bool neutral = factor == (op == kHue ? 0.0f : 1.0f);
      if (!neutral && (colored || op < kSaturation)) add(op, factor);
    }
    if (d.gray && colored && !job.settings.gray_first) add(kGray, 0);
  }

  // Contrast needs the mean of what came before it, so that it begins a sweep over the view.
  FASTSSL_HD int32_t next_contrast(int32_t from) const {
    while (from < count && step[from].kind != kContrast) ++from;
    return from;
  }

  FASTSSL_HD bool gray_last() const { return count > 0 && step[count - 1].kind == kGray; }

  // Whether the first `end` steps leave the channels alike: one of them is kept then.
  FASTSSL_HD bool gray_after(int32_t end) const {
    for (int32_t i = 0; i < end; ++i) {
      if (step[i].kind == kGray) return true;
    }
    return false;
  }
};

}  // namespace
}  // namespace augment
}  // namespace fastssl
