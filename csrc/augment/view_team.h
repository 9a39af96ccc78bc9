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

// Where a view is made. Types, so that the compiler can tell what lies in shared memory.
template <class Sample>
struct Memory {
  Sample* view;
  uint32_t* work;
};

// Its sizes, in shared memory: registers are scarce.
struct Room {
  int64_t pixels, stride;  // of the view; of its planes
  int64_t words;           // of 4 bytes, to work in
};

template <Semantics semantics, class Source, class Team>
FASTSSL_TEAM void make_view(const Team& team, const Job& job, const Steps& steps, const Room& room,
                            Memory<typename Rules<semantics>::Sample> memory) {
  using R = Rules<semantics>;
  using C = Colors<semantics>;
  using Sample = typename R::Sample;
  Sample* view = memory.view;
  const bool colored = job.channels == 3;

  // Steps [begin, end) on four pixels.
  typename R::Sum sum = 0;
  const auto sweep = [&](const Spot& spot, Pixel<float>(&p)[kQuad], int32_t begin, int32_t end,
                         float mean, bool one_plane) {
    C::run(p, steps, begin, end, mean);
    const auto store = [&](Sample* plane, const float (&x)[kQuad]) {
      if (spot.side) return put_quad(plane + spot.i, x);
      FASTSSL_UNROLL for (int32_t k = 0; k < kQuad; ++k) {
        if (k < spot.count) put(plane + spot.i + k * spot.step, x[k]);
      }
    };
    store(view, {p[0].r, p[1].r, p[2].r, p[3].r});
    if (!one_plane) {
      store(view + room.stride, {p[0].g, p[1].g, p[2].g, p[3].g});
      store(view + 2 * room.stride, {p[0].b, p[1].b, p[2].b, p[3].b});
    }
    if (end == steps.count) return;
    FASTSSL_UNROLL for (int32_t k = 0; k < kQuad; ++k) {
      const float gray = colored ? C::gray(p[k]) : p[k].r;
      if (k < spot.count) sum += summand<semantics>(gray);
    }
  };

  const bool overshoots = job.settings.bicubic;
  int32_t end = steps.next_contrast(0);
  bool one_plane = !colored || steps.gray_after(end);
  resample<R, Source>(team, job, memory.work, room.words,
                      [&](const Spot& spot, const Quad<typename R::Work>(&sums)[kPlanes]) {
                        Pixel<float> p[kQuad];
                        FASTSSL_UNROLL for (int32_t k = 0; k < kQuad; ++k) {
                          p[k] = {R::rounded(sums[0].x[k]), R::rounded(sums[1].x[k]),
                                  R::rounded(sums[2].x[k])};
                        }
                        if (overshoots) {
                          FASTSSL_UNROLL for (auto& q : p) {
                            q = {R::inside(q.r), R::inside(q.g), R::inside(q.b)};
                          }
                        }
                        sweep(spot, p, 0, end, 0, one_plane);
                      });
  while (end < steps.count) {
    const int32_t begin = end;
    const float mean = C::mean(of_summands<semantics>(team.sum(int64_t(sum))), double(room.pixels));
    const int64_t other = one_plane ? 0 : room.stride;
    sum = 0;
    end = steps.next_contrast(begin + 1);
    one_plane = !colored || steps.gray_after(end);
    const int64_t pixels = room.pixels;
    team.for_each((pixels + kQuad - 1) / kQuad, [&](int64_t n) {
      const int64_t i = n * kQuad;
      float x[3][kQuad];
      FASTSSL_UNROLL for (int c = 0; c < 3; ++c) load_quad(view + i + c * other, x[c]);
      Pixel<float> p[kQuad];
      FASTSSL_UNROLL for (int32_t k = 0; k < kQuad; ++k) p[k] = {x[0][k], x[1][k], x[2][k]};
      sweep({i, 1, int32_t(least<int64_t>(pixels - i, kQuad)), true}, p, begin, end, mean,
            one_plane);
    });
  }
  team.sync();
  if (job.drawn.blur) {
    blur<semantics>(team, job, view, room.stride, one_plane ? 1 : 3, memory.work, room.words);
  }
  write_view(team, Finish<semantics>(job, view, one_plane ? 0 : room.stride));
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
