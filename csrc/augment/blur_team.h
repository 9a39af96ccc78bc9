// Blurs of one plane of a view by a team, in place: torchvision's Gaussian and Pillow's boxes.
#pragma once

#include "augment/rules_team.h"

namespace fastssl {
namespace augment {
namespace {

constexpr int32_t kRun = 4;  // neighbours that a thread blurs at once, sharing what it loads

// 4-byte words of memory that a blur of so many taps needs at least.
template <class Sample>
FASTSSL_HD inline int64_t blur_words(int64_t height, int64_t width, int32_t taps) {
  const int64_t radius = taps / 2, size = int64_t(sizeof(Sample));
  const int64_t gaussian = 2 + radius + kRun + height * greatest<int64_t>(radius, kRun) +
                           (height * radius * size + 3) / 4;
  return taps > 0 ? gaussian : (2 * greatest(height, width) + 3) / 4;
}

// For -count < i < 2 * count - 1.
FASTSSL_TEAM inline int32_t reflected(int32_t i, int32_t count) {
  i = i < 0 ? -i : i;
  return least(i, 2 * (count - 1) - i);
}

// sum[j] = sum over |d| <= radius of weight[|d|] * at(j + d), from the lowest d on. `weight` has
// kRun zeros behind its end.
template <class F>
FASTSSL_TEAM inline void weigh(const float* weight, int32_t radius, float (&sum)[kRun],
                               const F& at) {
  float w[kRun] = {};
  FASTSSL_UNROLL for (int j = 0; j < kRun; ++j) sum[j] = 0;
  for (int32_t d = -radius; d < radius + kRun; ++d) {
    FASTSSL_UNROLL for (int j = kRun - 1; j > 0; --j) w[j] = w[j - 1];
    w[0] = weight[d < 0 ? -d : d];
    const float x = at(d);
    FASTSSL_UNROLL for (int j = 0; j < kRun; ++j) sum[j] = fused(x, w[j], sum[j]);
  }
}

// Fills `weight` for `weigh` and returns the radius.
FASTSSL_COLD inline int32_t weights_of(const Job& job, float* weight) {
  const int32_t radius = gaussian(job.settings.blur_taps, job.drawn.sigma, weight);
  for (int32_t k = 1; k <= kRun; ++k) weight[radius + k] = 0;
  return radius;
}

// Strip by strip of columns, as wide as memory allows: rows are blurred into memory, columns from
// there into the plane. The next strip also needs columns of this one as they were: `margin` keeps
// them.
template <class R, class Team>
FASTSSL_TEAM void blur_gaussian(const Team& team, const Job& job, typename R::Sample* view,
                                int64_t stride, int32_t planes, uint32_t* memory, int64_t words) {
  using Sample = typename R::Sample;
  const int32_t width = job.settings.width, height = job.settings.height;
  int32_t* shared_radius = reinterpret_cast<int32_t*>(memory);
  float* weight = reinterpret_cast<float*>(memory) + 1;
  if (team.rank == 0) *shared_radius = weights_of(job, weight);
  team.sync();
  const int32_t radius = *shared_radius;
  float* blurred = weight + radius + kRun + 1;
  const int64_t margin_words = (int64_t(height) * radius * int64_t(sizeof(Sample)) + 3) / 4;
  const int64_t left = words - (radius + kRun + 2) - margin_words;
  const int32_t most = int32_t(least<int64_t>(left / height, width));
  const int32_t strip = most < width ? most / kRun * kRun : width;
  const int32_t step = greatest(strip, least(most, greatest(radius, 1)));
  Sample* margin = reinterpret_cast<Sample*>(blurred + int64_t(step) * height);

  for (int32_t c = 0; c < planes; ++c) {
    Sample* plane = view + c * stride;
    for (int32_t x0 = 0; x0 < width; x0 += step) {
      const int32_t columns = least(step, width - x0);
      team.for_each(height, (columns + kRun - 1) / kRun, [&](int32_t y, int32_t run) {
        const int32_t x = x0 + run * kRun;
        const Sample* row = plane + int64_t(y) * width;
        const Sample* before = margin + int64_t(y) * radius - (x0 - radius);
        float sum[kRun];
        weigh(weight, radius, sum, [&](int32_t d) {
          const int32_t i = reflected(least(x + d, width - 1 + radius), width);
          return level((i < x0 ? before : row)[i]);
        });
        FASTSSL_UNROLL for (int j = 0; j < kRun; ++j) {
          const int32_t at = run * kRun + j;
          if (at < columns) blurred[int64_t(y) * columns + at] = sum[j];
        }
      });
      team.sync();
      const int32_t kept = x0 + columns - radius;  // the first column that the next strip needs
      team.for_each((height + kRun - 1) / kRun, columns, [&](int32_t run, int32_t x) {
        const int32_t y = run * kRun;
        float sum[kRun];
        weigh(weight, radius, sum, [&](int32_t d) {
          const int32_t i = reflected(least(y + d, height - 1 + radius), height);
          return blurred[int64_t(i) * columns + x];
        });
        FASTSSL_UNROLL for (int j = 0; j < kRun; ++j) {
          if (y + j >= height) continue;
          Sample* at = plane + int64_t(y + j) * width + x0 + x;
          if (x0 + x >= kept) margin[int64_t(y + j) * radius + x0 + x - kept] = *at;
          put(at, R::rounded(sum[j]));
        }
      });
      team.sync();
    }
  }
}

// Three boxes along each line of the plane, rows (down = false) or columns.
template <class Team>
FASTSSL_TEAM void blur_lines(const Team& team, const Job& job, const Box& box, bool down,
                             uint8_t* plane, uint8_t* memory, int64_t bytes) {
  const int32_t width = job.settings.width, height = job.settings.height;
  const int32_t lines = down ? width : height, length = down ? height : width;
  const int32_t most = int32_t(least<int64_t>(lines, bytes / (2 * int64_t(length))));
  for (int32_t first = 0; first < lines; first += most) {
    const int32_t count = least(most, lines - first);
    // Between the passes lines lie as they do in the plane: neighbours in memory are neighbours in
    // a row.
    const int64_t step = down ? count : 1, plane_step = down ? width : 1;
    const int64_t line = down ? 1 : length, plane_line = down ? 1 : width;
    uint8_t* part = plane + first * plane_line;
    uint8_t *one = memory, *other = memory + int64_t(count) * length;
    const auto pass = [&](const uint8_t* from, int64_t from_line, int64_t from_step, uint8_t* to,
                          int64_t to_line, int64_t to_step) {
      team.for_each(down ? length : count, down ? count : length, [&](int32_t row, int32_t column) {
        const int32_t l = down ? column : row, i = down ? row : column, r = box.radius;
        const auto at = [&](int32_t k) {
          return uint32_t(from[l * from_line + least(greatest(k, 0), length - 1) * from_step]);
        };
        uint32_t sum = 0;
        for (int32_t d = -r; d <= r; ++d) sum += at(i + d);
        const uint32_t total = sum * box.inner + (at(i - r - 1) + at(i + r + 1)) * box.outer;
        to[l * to_line + i * to_step] = uint8_t((total + (1u << 23)) >> 24);
      });
      team.sync();
    };
    pass(part, plane_line, plane_step, one, line, step);
    pass(one, line, step, other, line, step);
    pass(other, line, step, part, plane_line, plane_step);
  }
}

// `planes` planes, `stride` samples apart.
template <Semantics semantics, class Team>
FASTSSL_TEAM void blur(const Team& team, const Job& job, typename Rules<semantics>::Sample* view,
                       int64_t stride, int32_t planes, uint32_t* memory, int64_t words) {
  if constexpr (semantics != Semantics::kPil) {
    blur_gaussian<Rules<semantics>>(team, job, view, stride, planes, memory, words);
  } else if (job.settings.blur_taps > 0) {
    blur_gaussian<Rules<Semantics::kTvUint8>>(team, job, view, stride, planes, memory, words);
  } else {
    const Box box = pillow_box(job.drawn.sigma);
    uint8_t* bytes = reinterpret_cast<uint8_t*>(memory);
    for (int32_t c = 0; c < planes; ++c, view += stride) {
      blur_lines(team, job, box, false, view, bytes, 4 * words);
      blur_lines(team, job, box, true, view, bytes, 4 * words);
    }
  }
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
