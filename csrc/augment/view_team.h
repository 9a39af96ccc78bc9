// One view made by one team, from the image to the normalised output.
//
// Between stages the view is kept in planes of `Sample`, in shared memory where it fits; the stages
// in turn work in what memory is left beside it. A view is swept once, and once more for each
// contrast; a blur and the output follow.
#pragma once

#include "augment/blur_team.h"
#include "augment/resample_team.h"
#include "augment/store_team.h"

namespace fastssl {
namespace augment {
namespace {

FASTSSL_HD inline int64_t plane_stride(int64_t height, int64_t width) {
  return (height * width + 15) / 16 * 16;
}

struct Memory {
  void* view;
  uint32_t* work;
  int64_t words;  // of 4 bytes, in `work`
};

template <Semantics semantics, class Source, class Team>
FASTSSL_TEAM void make_view(const Team& team, const Job& job, const Steps& steps, Memory memory) {
  using R = Rules<semantics>;
  using C = Colors<semantics>;
  using Sample = typename R::Sample;
  const int32_t width = job.settings.width, height = job.settings.height;
  const int64_t pixels = int64_t(height) * width, stride = plane_stride(height, width);
  Sample* view = static_cast<Sample*>(memory.view);
  const bool colored = job.channels == 3;

  // Steps [begin, end) on the pixel at `i`, as `p` or as it is in the view.
  int64_t sum = 0;
  const auto sweep = [&](int64_t i, Pixel<float> p, int32_t begin, int32_t end, float mean) {
    p = C::run(p, steps, begin, end, mean);
    put(view + i, p.r);
    if (colored && !steps.gray_after(end)) {
      put(view + i + stride, p.g);
      put(view + i + 2 * stride, p.b);
    }
    if (end < steps.count) sum += summand<semantics>(colored ? C::gray(p) : p.r);
  };

  int32_t end = steps.next_contrast(0);
  resample<R, Source>(team, job, memory.work, memory.words,
                      [&](int32_t y, int32_t x, const typename R::Work(&sums)[3]) {
                        const float r = R::rounded(sums[0]);
                        Pixel<float> p{r, r, r};
                        if (colored) p = {r, R::rounded(sums[1]), R::rounded(sums[2])};
                        sweep(int64_t(y) * width + x, p, 0, end, 0);
                      });
  while (end < steps.count) {
    const int32_t begin = end;
    const float mean = C::mean(of_summands<semantics>(team.sum(sum)), double(pixels));
    const int64_t other = colored && !steps.gray_after(begin) ? stride : 0;
    sum = 0;
    end = steps.next_contrast(begin + 1);
    team.for_each(pixels, [&](int64_t i) {
      sweep(i, {level(view[i]), level(view[i + other]), level(view[i + 2 * other])}, begin, end,
            mean);
    });
  }
  team.sync();
  const bool one_plane = !colored || steps.gray_after(end);
  if (job.drawn.blur) {
    blur<semantics>(team, job, view, stride, one_plane ? 1 : 3, memory.work, memory.words);
  }
  write_view(team, Finish<semantics>(job, view, one_plane ? 0 : stride));
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
