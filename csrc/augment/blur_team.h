// Blurs of one plane of a view by a team, in place: torchvision's Gaussian and Pillow's boxes.
#pragma once

#include "augment/rules_team.h"

namespace fastssl {
namespace augment {
namespace {

// Numbers of a table of weights of a Gaussian that reaches `radius` far: see `weigh`.
FASTSSL_HD inline int32_t table_size(int32_t radius) { return 2 * quads(radius + kQuad) * kQuad; }

// 4-byte words of memory that a blur of so many taps needs at least.
template <class Sample>
FASTSSL_HD inline int64_t blur_words(int64_t height, int64_t width, int32_t taps) {
  const int64_t reach = greatest(quads(taps / 2), 1) * kQuad, size = int64_t(sizeof(Sample));
  const int64_t gaussian =
      2 * table_size(int32_t(reach)) + height * reach + height * reach * size / 4;
  return taps > 0 ? gaussian : (2 * greatest(height, width) + 3) / 4;
}

// For -count < i < 2 * count - 1.
FASTSSL_TEAM inline int32_t reflected(int32_t i, int32_t count) {
  i = i < 0 ? -i : i;
  return least(i, 2 * (count - 1) - i);
}

// sum[j] = the sum over d of the weight of d times what lies at j + d, from the lowest d on:
// samples that begin `reach` before 0 go by in quads, add(n, use) calling use(i, sample) for those
// of quad n. `table` has the weights of d from -reach - kQuad on, and zeros beyond its ends.
template <bool twice, class Add>
FASTSSL_TEAM inline void weigh(const float* table, int32_t count, const Add& add) {
  const Quad<float>* weights = reinterpret_cast<const Quad<float>*>(table);
  Quad<float> before = weights[0];
  const auto pass = [&](int32_t n) {
    const Quad<float> here = weights[n + 1];
    add(n, [&](int i, int j) { return i < j ? before.x[kQuad + i - j] : here.x[i - j]; });
    before = here;
  };
  if constexpr (twice) {
    FASTSSL_TWICE for (int32_t n = 0; n < count; ++n) pass(n);
  } else {
    FASTSSL_ROLLED for (int32_t n = 0; n < count; ++n) pass(n);
  }
}

// Weights of the Gaussian and where it lies in memory.
struct Reach {
  int32_t radius, across;     // how far it goes, and in whole quads
  const float *along, *down;  // tables that begin `across` and `radius` before a position
};

// What is at the front of `memory` when all have come back: `table_size` floats, twice. The doubles
// behind them are free again.
template <class Team>
FASTSSL_TEAM Reach reach_of(const Team& team, const Job& job, float* memory) {
  const double s = gaussian_sigma(job.drawn.sigma);
  const int32_t radius = gaussian_radius(job.settings.blur_taps, s);
  const int32_t across = quads(radius) * kQuad, size = table_size(across);
  double* heights = reinterpret_cast<double*>(memory + 2 * size);
  team.for_each(radius, [&](int64_t d) { heights[d] = gaussian_height(int32_t(d) + 1, s); });
  team.sync();
  double total = 1;
  FASTSSL_ROLLED for (int32_t d = 0; d < radius; ++d) total += 2 * heights[d];
  team.for_each(2 * size, [&](int64_t n) {
    const int32_t i = int32_t(n), at = i < size ? i - across : i - size - radius;
    const int32_t d = at < kQuad ? kQuad - at : at - kQuad;
    memory[i] = d > radius ? 0.0f : float((d == 0 ? 1.0 : heights[d - 1]) / total);
  });
  team.sync();
  return {radius, across, memory, memory + size};
}

// A strip of columns [x0, x0 + columns) of a plane. The next strip also needs columns of this one
// as they were: the last `kept` of this one's results wait in `margin` meanwhile.
template <class Sample>
struct Strip {
  Sample *plane, *margin;
  int32_t width, height, x0, columns, step, kept;
  bool even;  // rows are whole quads

  FASTSSL_TEAM bool last() const { return x0 + step >= width; }

  // Samples of a row from `x` on, reflected at its ends: of what lies further outside than a
  // Gaussian reaches any number.
  FASTSSL_TEAM void load(const Sample* row, int32_t x, float (&s)[kQuad]) const {
    if (even && uint32_t(x) < uint32_t(width)) return load_quad(row + x, s);
    if constexpr (sizeof(Sample) == 1) {
      if (even) {
        // Mirrored words: x is -4, -8, ... or width, width + 4, ...
        const bool left = x < 0;
        const int32_t near = left ? -x - kQuad : 2 * width - kQuad - x;
        const int32_t other = left ? least(-x, width - kQuad) : greatest(near - kQuad, 0);
        const uint32_t a = *reinterpret_cast<const uint32_t*>(row + near);
        const uint32_t b = *reinterpret_cast<const uint32_t*>(row + other);
        return levels_of(bytes_of(a, b, left ? 0x1234 : 0x7012), s);
      }
    }
    FASTSSL_UNROLL for (int k = 0; k < kQuad; ++k) {
      s[k] = level(row[reflected(least(greatest(x + k, 1 - width), 2 * width - 2), width)]);
    }
  }

  FASTSSL_TEAM void put(int32_t y, int32_t x, const float (&s)[kQuad]) const {
    Sample* at = plane + int64_t(y) * width + x;
    if (even) return put_quad(at, s);
    FASTSSL_UNROLL for (int k = 0; k < kQuad; ++k) {
      if (x + k < width) augment::put(at + k, s[k]);
    }
  }

  // A quad of the margin in its place.
  FASTSSL_TEAM Sample* waiting(int32_t y, int32_t x) const { return margin + y * kept + x; }
  FASTSSL_TEAM void settle(int32_t y, int32_t x) const {
    float s[kQuad];
    load_quad(waiting(y, x), s);
    put(y, x0 - kept + x, s);
  }
};

// Rows of a strip blurred into memory, whole quads of floats.
template <class Team, class Sample>
FASTSSL_TEAM void blur_rows(const Team& team, const Strip<Sample>& strip, const Reach& reach,
                            float* blurred) {
  const int32_t width = quads(strip.columns), count = 2 * quads(reach.across) + 1;
  team.for_each(strip.height, width, [&](int32_t y, int32_t quad) {
    const Sample* row = strip.plane + int64_t(y) * strip.width;
    const int32_t x = strip.x0 + quad * kQuad - reach.across;
    float sum[kQuad] = {};
    weigh<true>(reach.along, count, [&](int32_t n, const auto& weight) {
      float s[kQuad];
      strip.load(row, x + n * kQuad, s);
      FASTSSL_UNROLL for (int i = 0; i < kQuad; ++i) {
        FASTSSL_UNROLL for (int j = 0; j < kQuad; ++j) sum[j] = fused(s[i], weight(i, j), sum[j]);
      }
    });
    put_quad(blurred + (y * width + quad) * kQuad, sum);
  });
}

// Their columns blurred into the plane, four rows of quads at a time.
template <class R, class Team>
FASTSSL_TEAM void blur_columns(const Team& team, const Strip<typename R::Sample>& strip,
                               const Reach& reach, const float* blurred) {
  const int32_t height = strip.height, width = quads(strip.columns), pitch = width * kQuad;
  const int32_t count = quads(2 * reach.radius + kQuad);
  const int32_t ours = strip.last() ? strip.columns : strip.step - strip.kept;
  team.for_each(quads(height), width, [&](int32_t band, int32_t quad) {
    const int32_t x = quad * kQuad, top = band * kQuad - reach.radius;
    float sum[kQuad][kQuad] = {};
    weigh<false>(reach.down, count, [&](int32_t n, const auto& weight) {
      FASTSSL_UNROLL for (int i = 0; i < kQuad; ++i) {
        const int32_t y = least(top + n * kQuad + i, height - 1 + reach.radius);
        float s[kQuad];
        load_quad(blurred + reflected(y, height) * pitch + x, s);
        FASTSSL_UNROLL for (int j = 0; j < kQuad; ++j) {
          const float w = weight(i, j);
          FASTSSL_UNROLL for (int k = 0; k < kQuad; ++k) sum[j][k] = fused(s[k], w, sum[j][k]);
        }
      }
    });
    FASTSSL_UNROLL for (int j = 0; j < kQuad; ++j) {
      const int32_t y = band * kQuad + j;
      if (y >= height) return;
      FASTSSL_UNROLL for (int k = 0; k < kQuad; ++k) sum[j][k] = R::rounded(sum[j][k]);
      if (x < ours) {
        strip.put(y, strip.x0 + x, sum[j]);
      } else {
        if (strip.x0 > 0) strip.settle(y, x - ours);
        put_quad(strip.waiting(y, x - ours), sum[j]);
      }
    }
  });
  if (!strip.last() || strip.x0 == 0) return;
  team.for_each(height, quads(strip.kept),
                [&](int32_t y, int32_t quad) { strip.settle(y, quad * kQuad); });
}

// Strip by strip, as wide as memory allows.
template <class R, class Team>
FASTSSL_TEAM void blur_gaussian(const Team& team, const Job& job, typename R::Sample* view,
                                int64_t stride, int32_t planes, uint32_t* memory, int64_t words) {
  using Sample = typename R::Sample;
  const int32_t width = job.settings.width, height = job.settings.height;
  const Reach reach = reach_of(team, job, reinterpret_cast<float*>(memory));
  const int32_t tables = 2 * table_size(reach.across), kept = greatest(reach.across, kQuad);
  const int64_t margin_words = int64_t(height) * kept * int64_t(sizeof(Sample)) / 4;
  float* blurred = reinterpret_cast<float*>(memory) + tables;
  const int64_t most = (words - tables - margin_words) / height / kQuad * kQuad;
  int32_t step = int32_t(least<int64_t>(most, quads(width) * kQuad));
  if (step < width) {  // of so many columns that no thread idles, if they are not too few
    const int32_t rounds = step / kQuad * quads(height) / team.size;
    if (rounds > 0) step = greatest(rounds * team.size / quads(height) * kQuad, kept);
  }
  Sample* margin = reinterpret_cast<Sample*>(blurred + int64_t(step) * height);
  Strip<Sample> strip{nullptr, margin, width, height, 0, 0, step, kept, width % kQuad == 0};
  for (int32_t c = 0; c < planes; ++c) {
    strip.plane = view + c * stride;
    for (strip.x0 = 0; strip.x0 < width; strip.x0 += step) {
      strip.columns = least(step, width - strip.x0);
      blur_rows(team, strip, reach, blurred);
      team.sync();
      blur_columns<R>(team, strip, reach, blurred);
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
