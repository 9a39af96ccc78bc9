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
// memory; where they are too many for it, each is computed where it is used.
template <class R>
struct Line {
  using Real = typename R::Real;
  using Work = typename R::Work;

  Axis<Real> axis;
  int32_t most, stride;  // taps at most; from position to position in `weight`, 0 for none
  Position<Real>* position;
  Work* table;

  FASTSSL_TEAM Line(int32_t in, int32_t out, const Settings& settings, int64_t words)
      : axis(in, out, settings.bicubic, settings.antialias) {
    most = settings.antialias ? 2 * (int32_t(axis.support) + 1) + 1 : 4;
    most = least(most, in);
    stride = most | 1;  // odd: neighbours in different banks
    if (settings.antialias && stride > words / 64) stride = 0;
  }

  // 4-byte words of memory for each position.
  FASTSSL_TEAM int32_t words() const { return int32_t(sizeof(Position<Real>) / 4) + stride; }

  FASTSSL_COLD void prepare(int32_t i, int32_t o) const {
    Position<Real> p{axis.taps(o), axis.scale * (Real(o) + Real(0.5)), 0};
    Work* to = table + int64_t(i) * stride;
    if (!axis.antialias) {
      Real four[4];
      axis.weights(o, p.taps, four);
      for (int32_t k = 0; k < p.taps.count; ++k) to[k] = R::weight(four[k]);
    } else {
      for (int32_t k = 0; k < p.taps.count; ++k) p.total += unscaled(p, k);
      for (int32_t k = 0; stride > 0 && k < p.taps.count; ++k) to[k] = computed(p, k);
    }
    position[i] = p;
  }

  FASTSSL_TEAM Work weight(int32_t i, const Position<Real>& p, int32_t k) const {
    return stride > 0 ? table[int64_t(i) * stride + k] : computed(p, k);
  }

 private:
  // As Axis::weights has them.
  FASTSSL_TEAM Real unscaled(const Position<Real>& p, int32_t k) const {
    const Real x = (Real(k + p.taps.start) - p.center + Real(0.5)) * axis.inverse;
    return axis.bicubic ? cubic(x, Real(-0.5)) : greatest(1 - absolute(x), Real(0));
  }
  FASTSSL_TEAM Work computed(const Position<Real>& p, int32_t k) const {
    return R::weight(unscaled(p, k) / p.total);
  }
};

// How much of the view is made at a time, and of how many rows of the image. Where not even the
// rows of one row of the view fit, these are taken in parts.
struct Tile {
  int32_t columns, rows, source_rows;
};

template <class R>
FASTSSL_TEAM inline Tile tile_for(const Line<R>& across, const Line<R>& down, int32_t channels,
                                  int64_t words) {
  for (int32_t columns = across.axis.out;; columns = (columns + 1) / 2) {
    const int64_t left = words - int64_t(columns) * across.words();
    const int64_t row = int64_t(columns) * channels, each = down.words();
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
  typename R::Work *rows, *partial;  // resampled horizontally; sums of pixels made in parts

  FASTSSL_TEAM Plan(const Job& job, bool turned_, uint32_t* memory, int64_t words)
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
        tile(tile_for(across, down, job.channels, words)) {
    across.position = reinterpret_cast<Position<typename R::Real>*>(memory);
    down.position = across.position + tile.columns;
    across.table = reinterpret_cast<typename R::Work*>(down.position + tile.rows);
    down.table = across.table + int64_t(tile.columns) * across.stride;
    partial = down.table + int64_t(tile.rows) * down.stride;
    rows = partial + (tile.rows == 1 ? int64_t(tile.columns) * job.channels : 0);
  }
};

// Rows [r0, r0 + count) of the crop for columns [x0, x0 + columns) of the view.
template <class R, class Source, class Team>
FASTSSL_TEAM inline void resample_rows(const Team& team, const Job& job, const Plan<R>& plan,
                                       int32_t columns, int32_t r0, int32_t count) {
  using Work = typename R::Work;
  const Line<R> across = plan.across;
  const int64_t channel_stride = job.image.channel_stride, column_stride = plan.column_stride;
  const int64_t row_stride = plan.row_stride;
  const int32_t channels = job.channels;
  const Source* top = static_cast<const Source*>(job.image.data) + plan.crop + r0 * row_stride;
  Work* rows = plan.rows;
  team.for_each(count, columns, [&](int32_t r, int32_t x) {
    const auto p = across.position[x];
    const Source* from = top + r * row_stride + p.taps.start * column_stride;
    Work sum[3] = {};
    FASTSSL_ROLLED for (int32_t k = 0; k < p.taps.count; ++k, from += column_stride) {
      const Work w = across.weight(x, p, k);
      FASTSSL_UNROLL for (int c = 0; c < 3; ++c) {
        if (c < channels) sum[c] = R::add(sum[c], load_sample<R>(from + c * channel_stride), w);
      }
    }
    FASTSSL_UNROLL for (int c = 0; c < 3; ++c) {
      if (c < channels) rows[(r * channels + c) * columns + x] = R::between_passes(sum[c]);
    }
  });
}

// The crop's rows [r0, r1) added to `count` rows of the view: calls finish(y, x, sums) for each
// pixel, y and x counted in the tile; where `more` rows follow, or `before` came, by way of
// `partial`.
template <class R, class Team, class F>
FASTSSL_TEAM inline void resample_columns(const Team& team, int32_t channels, const Plan<R>& plan,
                                          int32_t count, int32_t columns, int32_t r0, int32_t r1,
                                          bool before, bool more, const F& finish) {
  using Work = typename R::Work;
  const Line<R> down = plan.down;
  const Work* rows = plan.rows;
  Work* partial = plan.partial;
  team.for_each(count, columns, [&](int32_t y, int32_t x) {
    const auto p = down.position[y];
    const int32_t begin = greatest(p.taps.start, r0);
    const int32_t end = least(p.taps.start + p.taps.count, r1);
    Work sum[3] = {};
    FASTSSL_UNROLL for (int c = 0; c < 3; ++c) {
      if (c < channels && before) sum[c] = partial[c * columns + x];
    }
    FASTSSL_ROLLED for (int32_t r = begin; r < end; ++r) {
      const Work w = down.weight(y, p, r - p.taps.start);
      FASTSSL_UNROLL for (int c = 0; c < 3; ++c) {
        if (c >= channels) continue;
        sum[c] = R::add(sum[c], rows[((r - r0) * channels + c) * columns + x], w);
      }
    }
    if (!more) return finish(y, x, sum);
    FASTSSL_UNROLL for (int c = 0; c < 3; ++c) {
      if (c < channels) partial[c * columns + x] = sum[c];
    }
  });
}

// Calls finish(y, x, sums) for each pixel of the view, with its sums for each channel.
template <class R, class Source, class Team, class F>
FASTSSL_TEAM void resample(const Team& team, const Job& job, uint32_t* memory, int64_t words,
                           const F& finish) {
  constexpr int32_t kPlanWords = int32_t(sizeof(Plan<R>) + 7) / 8 * 2;
  Plan<R>& plan = *reinterpret_cast<Plan<R>*>(memory);
  if (team.rank == 0) {
    const Drawn& d = job.drawn;
    const bool turned =
        R::kPillow && pillow_down_first(d.height, d.width, job.settings.height, job.settings.width);
    plan = Plan<R>(job, turned, memory + kPlanWords, words - kPlanWords);
  }
  team.sync();
  const Tile tile = plan.tile;
  const int32_t width = plan.width, height = plan.height;
  const bool turned = plan.turned, flip = job.drawn.flip;
  for (int32_t x0 = 0; x0 < width; x0 += tile.columns) {
    const int32_t columns = least(tile.columns, width - x0);
    team.for_each(columns, [&](int64_t x) {
      const int32_t at = x0 + int32_t(x);
      plan.across.prepare(int32_t(x), flip && !turned ? width - 1 - at : at);
    });
    for (int32_t y0 = 0; y0 < height; y0 += tile.rows) {
      const int32_t count = least(tile.rows, height - y0);
      team.for_each(count, [&](int64_t y) { plan.down.prepare(int32_t(y), y0 + int32_t(y)); });
      team.sync();
      const int32_t first = plan.down.position[0].taps.start;
      const Taps end = plan.down.position[count - 1].taps;
      const int32_t last = end.start + end.count;
      for (int32_t r0 = first; r0 < last; r0 += tile.source_rows) {
        const int32_t r1 = least(r0 + tile.source_rows, last);
        resample_rows<R, Source>(team, job, plan, columns, r0, r1 - r0);
        team.sync();
        resample_columns<R>(team, job.channels, plan, count, columns, r0, r1, r0 > first, r1 < last,
                            [&](int32_t y, int32_t x, const typename R::Work(&sums)[3]) {
                              y += y0;
                              x += x0;
                              if (!turned) return finish(y, x, sums);
                              finish(x, flip ? height - 1 - y : y, sums);
                            });
        team.sync();
      }
    }
  }
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
