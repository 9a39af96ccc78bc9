// Crop, resize and flip by a team: tile by tile of the view, the rows of the image that a tile
// needs are resampled horizontally into memory, and these vertically into pixels. Sums are those of
// the CPU: along a row first, in the order of the taps.
#pragma once

#include "augment/rules_team.h"

namespace fastssl {
namespace augment {
namespace {

template <class Real>
struct Position {
  Taps taps;
  Real center, total;  // of weights that are not in memory
};

// One axis of a crop resampled to one axis of the view. Weights of a few positions at a time are in
// memory, at these words of it; where they are too many, each is computed where it is used.
template <class R>
struct Line {
  using Real = typename R::Real;
  using Work = typename R::Work;

  Axis<Real> axis;
  int32_t most, stride;  // taps at most; from position to position in the table, 0 for none
  int32_t positions, table;

  FASTSSL_TEAM Line(int32_t in, int32_t out, const Settings& settings, int64_t words)
      : axis(in, out, settings.bicubic, settings.antialias) {
    most = settings.antialias ? 2 * (int32_t(axis.support) + 1) + 1 : 4;
    most = least(most, in);
    stride = most | 1;  // odd: neighbours in different banks
    if (settings.antialias && stride > words / 64) stride = 0;
  }

  // 4-byte words of memory for each position.
  FASTSSL_TEAM int32_t words() const { return int32_t(sizeof(Position<Real>) / 4) + stride; }

  FASTSSL_TEAM Position<Real>& position(uint32_t* memory, int32_t i) const {
    return reinterpret_cast<Position<Real>*>(memory + positions)[i];
  }
  FASTSSL_TEAM Work* weights(uint32_t* memory, int32_t i) const {
    return reinterpret_cast<Work*>(memory + table) + int64_t(i) * stride;
  }

  FASTSSL_COLD void prepare(uint32_t* memory, int32_t i, int32_t o) const {
    Position<Real> p{axis.taps(o), axis.scale * (Real(o) + Real(0.5)), 0};
    Work* to = weights(memory, i);
    if (!axis.antialias) {
      Real four[4];
      axis.weights(o, p.taps, four);
      for (int32_t k = 0; k < p.taps.count; ++k) to[k] = R::weight(four[k]);
    } else {
      for (int32_t k = 0; k < p.taps.count; ++k) p.total += unscaled(p, k);
      for (int32_t k = 0; stride > 0 && k < p.taps.count; ++k) to[k] = computed(p, k);
    }
    position(memory, i) = p;
  }

  // As Axis::weights has it.
  FASTSSL_COLD Work computed(const Position<Real>& p, int32_t k) const {
    return R::weight(unscaled(p, k) / p.total);
  }

 private:
  FASTSSL_TEAM Real unscaled(const Position<Real>& p, int32_t k) const {
    const Real x = (Real(k + p.taps.start) - p.center + Real(0.5)) * axis.inverse;
    return axis.bicubic ? cubic(x, Real(-0.5)) : greatest(1 - absolute(x), Real(0));
  }
};

constexpr int32_t kPlanes = 3;  // a gray image is resampled as if it had them

// How much of the view is made at a time, and of how many rows of the image. Where not even the
// rows of one row of the view fit, these are taken in parts.
struct Tile {
  int32_t columns, rows, source_rows;  // whole quads of columns, some of them beyond the view
};

template <class R>
FASTSSL_TEAM inline Tile tile_for(const Line<R>& across, const Line<R>& down, int64_t words) {
  for (int32_t columns = quads(across.axis.out) * kQuad;; columns = quads(columns / 2) * kQuad) {
    const int64_t left = words - int64_t(columns) * across.words();
    const int64_t row = int64_t(columns) * kPlanes, each = down.words();
    const float scale = float(down.axis.scale);
    // n rows read the image's rows from first to last: at most scale * n + most.
    const float fitting = float(left - (down.most + 2) * row) / (float(each) + scale * float(row));
    const int32_t rows = int32_t(least(fitting, float(down.axis.out)));
    // Neighbouring tiles share rows and resample them twice: narrow tiles rather than flat ones.
    const bool enough = rows == down.axis.out || scale * float(rows) >= float(down.most);
    if (rows >= 1 && (enough || columns <= 8)) {
      return {columns, rows, int32_t((left - rows * each) / row)};
    }
    if (columns <= 8) return {columns, 1, int32_t((left - each - row) / row)};
  }
}

// What all threads need to know, in shared memory: it would take half of a thread's registers.
template <class R>
struct Plan {
  Line<R> across, down;
  bool turned;                              // rows are columns, and columns rows
  int32_t height, width;                    // of the view
  int64_t crop, row_stride, column_stride;  // of the image
  Tile tile;
  int32_t rows, partial;  // words: rows resampled horizontally, sums of pixels made in parts

  FASTSSL_TEAM Plan(const Job& job, bool turned_, int32_t first, int64_t words)
      : across(turned_ ? job.drawn.height : job.drawn.width,
               turned_ ? job.settings.height : job.settings.width, job.settings, words),
        down(turned_ ? job.drawn.width : job.drawn.height,
             turned_ ? job.settings.width : job.settings.height, job.settings, words),
        turned(turned_),
        height(down.axis.out),
        width(across.axis.out),
        crop(job.drawn.top * job.image.row_stride + job.drawn.left * job.image.column_stride),
        row_stride(turned_ ? job.image.column_stride : job.image.row_stride),
        column_stride(turned_ ? job.image.row_stride : job.image.column_stride),
        tile(tile_for(across, down, words - kQuad)) {
    constexpr int32_t kPosition = int32_t(sizeof(Position<typename R::Real>) / 4);
    across.positions = first;
    down.positions = across.positions + tile.columns * kPosition;
    across.table = down.positions + tile.rows * kPosition;
    down.table = across.table + tile.columns * across.stride;
    partial = quads(down.table + tile.rows * down.stride) * kQuad;
    rows = partial + (tile.rows == 1 ? tile.columns * kPlanes : 0);
  }
};

// Rows of the image that a thread resamples at once: they share weights, and their loads are under
// way together.
constexpr int32_t kBand = 4;

// Rows [r0, r0 + count) of the crop for the columns of a tile. `adjacent`: a row's samples lie one
// after the other.
template <class R, class Source, bool adjacent>
FASTSSL_TEAM inline void resample_rows(const Walk& walk, const Job& job, const Plan<R>& plan,
                                       uint32_t* memory, int32_t r0, int32_t count) {
  using Work = typename R::Work;
  const Line<R> across = plan.across;
  const int64_t channel_stride = job.channels == kPlanes ? job.image.channel_stride : 0;
  const int64_t column_stride = adjacent ? 1 : plan.column_stride, row_stride = plan.row_stride;
  const int32_t pitch = plan.tile.columns;
  const Source* top = static_cast<const Source*>(job.image.data) + plan.crop + r0 * row_stride;
  Work* rows = reinterpret_cast<Work*>(memory + plan.rows);
  walk.for_each((count + kBand - 1) / kBand, [&](int32_t band, int32_t x) {
    const int32_t first = band * kBand;
    const auto p = across.position(memory, x);
    const Work* weight = across.weights(memory, x);
    const Source* from[kBand];
    FASTSSL_UNROLL for (int32_t b = 0; b < kBand; ++b) {  // its last row again rather than none
      from[b] = b == 0 ? top + first * row_stride + p.taps.start * column_stride
                       : from[b - 1] + (first + b < count ? row_stride : 0);
    }
    Work sum[kBand][kPlanes] = {};
    const auto add = [&](int32_t k, Work w) {  // tap k of those that begin at `from`
      FASTSSL_UNROLL for (int32_t b = 0; b < kBand; ++b) {
        FASTSSL_UNROLL for (int c = 0; c < kPlanes; ++c) {
          const Source* at = from[b] + c * channel_stride + k * column_stride;
          sum[b][c] = R::add(sum[b][c], load_sample<R>(at), w);
        }
      }
    };
    if (across.stride > 0) {
      int32_t left = p.taps.count;
      FASTSSL_ROLLED for (; left > 1; left -= 2, weight += 2) {
        add(0, weight[0]);
        add(1, weight[1]);
        FASTSSL_UNROLL for (auto& row : from) row += 2 * column_stride;
      }
      if (left > 0) add(0, weight[0]);
    } else {
      FASTSSL_ROLLED for (int32_t k = 0; k < p.taps.count; ++k) add(k, across.computed(p, k));
    }
    Work* to = rows + first * kPlanes * pitch + x;
    FASTSSL_UNROLL for (int32_t b = 0; b < kBand; ++b) {
      if (first + b >= count) return;
      FASTSSL_UNROLL for (int c = 0; c < kPlanes; ++c, to += pitch) {
        *to = R::between_passes(sum[b][c]);
      }
    }
  });
}

// The crop's rows [r0, r1) added to `count` rows of the view: calls finish(y, x, sums) for each
// quad, y and x counted in the tile; where `more` rows follow, or `before` came, by way of
// `partial`.
template <class R, class F>
FASTSSL_TEAM inline void resample_columns(const Walk& walk, const Plan<R>& plan, uint32_t* memory,
                                          int32_t count, int32_t r0, int32_t r1, bool before,
                                          bool more, const F& finish) {
  using Work = typename R::Work;
  const Line<R> down = plan.down;
  const int32_t pitch = plan.tile.columns;
  const Work* rows = reinterpret_cast<const Work*>(memory + plan.rows);
  Quad<Work>* partial = reinterpret_cast<Quad<Work>*>(memory + plan.partial);
  walk.for_each(count, [&](int32_t y, int32_t quad) {
    const int32_t x = quad * kQuad;
    const auto p = down.position(memory, y);
    const Work* weight = down.weights(memory, y) - p.taps.start;
    const int32_t begin = greatest(p.taps.start, r0);
    const int32_t end = least(p.taps.start + p.taps.count, r1);
    const Work* from = rows + (begin - r0) * kPlanes * pitch + x;
    Quad<Work> sum[kPlanes] = {};
    FASTSSL_UNROLL for (int c = 0; c < kPlanes; ++c) {
      if (before) sum[c] = partial[(c * pitch + x) / kQuad];
    }
    const auto add = [&](Work w) {
      FASTSSL_UNROLL for (int c = 0; c < kPlanes; ++c, from += pitch) {
        const Quad<Work> four = *reinterpret_cast<const Quad<Work>*>(from);
        FASTSSL_UNROLL for (int k = 0; k < kQuad; ++k) {
          sum[c].x[k] = R::add(sum[c].x[k], four.x[k], w);
        }
      }
    };
    if (down.stride > 0) {
      FASTSSL_ROLLED for (int32_t r = begin; r < end; ++r) add(weight[r]);
    } else {
      FASTSSL_ROLLED for (int32_t r = begin; r < end; ++r) {
        add(down.computed(p, r - p.taps.start));
      }
    }
    if (!more) return finish(y, x, sum);
    FASTSSL_UNROLL for (int c = 0; c < kPlanes; ++c) partial[(c * pitch + x) / kQuad] = sum[c];
  });
}

// Asks for a crop of adjacent samples before it is needed: from memory it takes longer to come
// than the threads that wait for it have to do.
template <class Source, class Team>
FASTSSL_TEAM inline void fetch_ahead(const Team& team, const Job& job) {
#ifndef __CUDA_ARCH__
  (void)team, (void)job;
#else
  if (job.image.column_stride != 1) return;
  constexpr int32_t kLine = 128 / int32_t(sizeof(Source));
  const Drawn& d = job.drawn;
  const Source* crop =
      static_cast<const Source*>(job.image.data) + d.top * job.image.row_stride + d.left;
  const int32_t lines = d.width / kLine + 2;  // of a row, and one where it does not begin one
  team.for_each(job.channels * d.height, lines, [&](int32_t row, int32_t line) {
    const int32_t c = row / d.height, at = least(line * kLine, d.width - 1);
    const Source* from =
        crop + c * job.image.channel_stride + (row - c * d.height) * job.image.row_stride + at;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
  });
#endif
}

// Calls finish(spot, sums) for each quad of the view, with its sums for each channel.
template <class R, class Source, class Team, class F>
FASTSSL_TEAM void resample(const Team& team, const Job& job, uint32_t* memory, int64_t words,
                           const F& finish) {
  constexpr int32_t kPlanWords = int32_t(sizeof(Plan<R>) + 15) / 16 * 4;
  Plan<R>& plan = *reinterpret_cast<Plan<R>*>(memory);
  fetch_ahead<Source>(team, job);
  if (team.rank == 0) {
    const Drawn& d = job.drawn;
    const bool turned =
        R::kPillow && pillow_down_first(d.height, d.width, job.settings.height, job.settings.width);
    plan = Plan<R>(job, turned, kPlanWords, least<int64_t>(words, 1 << 30) - kPlanWords);
  }
  team.sync();
  const Tile tile = plan.tile;
  const int32_t width = plan.width, height = plan.height;
  const bool turned = R::kPillow && plan.turned, flip = job.drawn.flip,
             adjacent = plan.column_stride == 1;
  const bool side = !turned && width % kQuad == 0;
  for (int32_t x0 = 0; x0 < width; x0 += tile.columns) {
    const int32_t columns = least(tile.columns, width - x0);
    const Walk single = team.walk(columns), quad = team.walk(quads(columns));
    team.for_each(columns, [&](int64_t x) {
      const int32_t at = x0 + int32_t(x);
      plan.across.prepare(memory, int32_t(x), flip && !turned ? width - 1 - at : at);
    });
    for (int32_t y0 = 0; y0 < height; y0 += tile.rows) {
      const int32_t count = least(tile.rows, height - y0);
      team.for_each(count,
                    [&](int64_t y) { plan.down.prepare(memory, int32_t(y), y0 + int32_t(y)); });
      team.sync();
      const int32_t first = plan.down.position(memory, 0).taps.start;
      const Taps end = plan.down.position(memory, count - 1).taps;
      const int32_t last = end.start + end.count;
      for (int32_t r0 = first; r0 < last; r0 += tile.source_rows) {
        const int32_t r1 = least(r0 + tile.source_rows, last);
        if (adjacent) {
          resample_rows<R, Source, true>(single, job, plan, memory, r0, r1 - r0);
        } else {
          resample_rows<R, Source, false>(single, job, plan, memory, r0, r1 - r0);
        }
        team.sync();
        resample_columns<R>(
            quad, plan, memory, count, r0, r1, r0 > first, r1 < last,
            [&](int32_t y, int32_t x, const Quad<typename R::Work>(&sums)[kPlanes]) {
              y += y0;
              x += x0;
              const int32_t there = least(width - x, kQuad);
              if (!turned) return finish({int64_t(y) * width + x, 1, there, side}, sums);
              const int32_t column = flip ? height - 1 - y : y;
              finish({int64_t(x) * height + column, height, there, false}, sums);
            });
        team.sync();
      }
    }
  }
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
