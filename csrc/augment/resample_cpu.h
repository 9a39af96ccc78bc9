// Crop, resize and flip: two separable passes, the horizontal one on as many rows at once as a
// vector has lanes, so that its taps are whole vectors, too.
#pragma once

#include "augment/plane_cpu.h"

namespace fastssl {
namespace augment {
namespace {

// A number of taps that the compiler knows; 0 where it does not.
template <int taps>
struct Count {};

// For each output position, and some past the last, the first of `taps` source positions and their
// weights.
template <class P>
struct Table {
  int32_t taps = 1;
  int32_t* start;
  typename P::Work* weight;

  Table(int32_t in, int32_t out, const Settings& settings, bool flip, Arena* arena) {
    const bool antialias = settings.antialias || P::kPillow;
    const Axis<typename P::Real> axis(in, out, settings.bicubic, antialias);
    const bool counting = arena->base == nullptr;
    // No position has more; those that have fewer get weights of zero.
    const int32_t most = least(in, antialias ? 2 * (int32_t(axis.support) + 1) + 1 : 4);
    if (counting) {
      taps = most;
    } else {
      for (int32_t o = 0; o < out; ++o) taps = greatest(taps, axis.taps(o).count);
    }
    start = arena->take<int32_t>(out + kLane);
    weight = arena->take<typename P::Work>(int64_t(out + kLane) * most);
    typename P::Real* exact = arena->take<typename P::Real>(most);
    if (counting) return;
    for (int32_t o = 0; o < out; ++o) {
      const int32_t at = flip ? out - 1 - o : o;
      const Taps range = axis.taps(o);
      axis.weights(o, range, exact);
      start[at] = least(range.start, in - taps);
      typename P::Work* row = weight + int64_t(at) * taps;
      for (int32_t k = 0; k < taps; ++k) row[k] = 0;
      for (int32_t k = 0; k < range.count; ++k) {
        row[range.start - start[at] + k] = P::weight(exact[k]);
      }
    }
    for (int32_t o = out; o < out + kLane; ++o) {
      start[o] = 0;
      for (int32_t k = 0; k < taps; ++k) weight[int64_t(o) * taps + k] = 0;
    }
  }
};

// A row of one channel of the crop, in the type of the sums.
template <class P>
void load_crop_row(const Job& job, int32_t channel, int32_t row, typename P::Work* out) {
  using Work = typename P::Work;
  const Image& image = job.image;
  const int64_t step = image.column_stride, count = job.drawn.width;
  const int64_t first = channel * image.channel_stride + (job.drawn.top + row) * image.row_stride +
                        job.drawn.left * step;
  if (image.is_float) {
    const float* from = static_cast<const float*>(image.data) + first;
    if (!P::kLevels) {
      for (int64_t x = 0; x < count; ++x) out[x] = Work(from[x * step]);
      return;
    }
    for (int64_t x = 0; x < count; ++x) {  // torchvision's conversion of float to uint8
      const float sample = from[x * step];
      out[x] = Work(floor_of((sample > 0 ? sample < 1 ? sample : 1.0f : 0.0f) * 255.999f));
    }
    return;
  }
  const uint8_t* from = static_cast<const uint8_t*>(image.data) + first;
  widen(from, step, count, out);
  if (!P::kLevels) {
    for (int64_t x = 0; x < count; ++x) out[x] *= Work(float(1.0 / 255.0));
  }
}

// Calls `body` with the number of taps as a type where it is small: most often it is.
template <class F>
inline void with_taps(int32_t taps, const F& body) {
  switch (taps) {
    case 2:
      return body(Count<2>());
    case 3:
      return body(Count<3>());
    case 4:
      return body(Count<4>());
    default:
      return body(Count<0>());
  }
}

// `columns` holds kLane rows side by side, position by position. Each of them is resampled.
template <class P, int fixed>
void resample_rows(const Table<P>& table, Count<fixed>, const typename P::Work* columns,
                   int32_t count, typename P::Work* const (&rows)[kLane]) {
  using Work = typename P::Work;
  const int32_t taps = fixed ? fixed : table.taps;
  for (int32_t first = 0; first < count; first += kLane) {
    Vec<Work> sums[kLane];
#pragma GCC unroll 16
    for (int i = 0; i < kLane; ++i) {
      const Work* from = columns + int64_t(table.start[first + i]) * kLane;
      const Work* weight = table.weight + int64_t(first + i) * taps;
      Vec<Work> sum = {};
#pragma GCC unroll 4
      for (int32_t k = 0; k < taps; ++k) {
        sum = P::add(sum, load<Work>(from + int64_t(k) * kLane), weight[k]);
      }
      sums[i] = P::between_passes(sum);
    }
    transpose(sums);
#pragma GCC unroll 16
    for (int i = 0; i < kLane; ++i) store<Work>(rows[i] + first, sums[i]);
  }
}

// One output row from the rows it reads.
template <class P, int fixed>
void resample_down(int32_t taps, Count<fixed>, const typename P::Work* const* rows,
                   const typename P::Work* weight, int32_t width, typename P::Work* out) {
  using Work = typename P::Work;
  if (fixed) taps = fixed;
  for (int32_t x = 0; x < width; x += kLane) {
    Vec<Work> sum = {};
#pragma GCC unroll 4
    for (int32_t k = 0; k < taps; ++k) sum = P::add(sum, load<Work>(rows[k] + x), weight[k]);
    store<Work>(out + x, P::rounded(sum));
  }
}

// As many rows as a vector has lanes, resampled across: `load_row(row, out)` gives a row.
template <class P>
struct Across {
  using Work = typename P::Work;
  const Table<P> table;
  const int32_t in, out;
  const int64_t pitch;
  Work* const loaded;
  Work* const columns;

  Across(const Job& job, Arena* arena)
      : table(job.drawn.width, job.settings.width, job.settings, job.drawn.flip, arena),
        in(job.drawn.width),
        out(job.settings.width),
        pitch(padded(in)),
        loaded(arena->take<Work>(pitch * kLane)),
        columns(arena->take<Work>(pitch * kLane)) {}

  template <class F>
  void operator()(const F& load_row, int32_t first, int32_t last, Work* const (&to)[kLane]) const {
    for (int32_t i = 0; i < kLane && first + i < last; ++i) load_row(first + i, loaded + i * pitch);
    for (int64_t x = 0; x < in; x += kLane) {
      Vec<Work> square[kLane];
#pragma GCC unroll 16
      for (int i = 0; i < kLane; ++i) square[i] = load<Work>(loaded + i * pitch + x);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLane; ++i) store<Work>(columns + (x + i) * kLane, square[i]);
    }
    with_taps(table.taps, [&](auto taps) { resample_rows(table, taps, columns, out, to); });
  }
};

// One output row at a time from the rows it reads, `width` numbers each.
template <class P>
struct Down {
  using Work = typename P::Work;
  const Table<P> table;
  const int32_t width;
  const Work** const rows;

  Down(const Job& job, int32_t width_, Arena* arena)
      : table(job.drawn.height, job.settings.height, job.settings, false, arena),
        width(width_),
        rows(arena->take<const Work*>(table.taps)) {}

  template <class F>
  void operator()(int32_t y, const F& row, Work* out) const {
    for (int32_t k = 0; k < table.taps; ++k) rows[k] = row(table.start[y] + k);
    const Work* weight = table.weight + int64_t(y) * table.taps;
    with_taps(table.taps,
              [&](auto taps) { resample_down<P>(table.taps, taps, rows, weight, width, out); });
  }
};

// Rows before columns, through a ring of the rows that columns still need.
template <class P>
int64_t resample_rows_first(const Job& job, const Planes<typename P::Sample>& out, Arena arena) {
  using Work = typename P::Work;
  const Across<P> across(job, &arena);
  const Down<P> down(job, out.width, &arena);
  const int32_t taps = down.table.taps, ring_rows = taps + kLane;
  const int64_t pitch = padded(out.width);
  Work* ring = arena.take<Work>(pitch * ring_rows);
  Work* finished = arena.take<Work>(pitch);
  if (arena.base == nullptr) return arena.used;
  const auto slot = [&](int32_t row) { return ring + row % ring_rows * pitch; };
  for (int32_t channel = 0; channel < out.channels; ++channel) {
    const auto load_row = [&](int32_t row, Work* to) { load_crop_row<P>(job, channel, row, to); };
    int32_t next = 0;  // first crop row that is not in the ring
    for (int32_t y = 0; y < out.height; ++y) {
      const int32_t top = down.table.start[y];
      for (next = greatest(next, top); next < top + taps; next += kLane) {
        Work* slots[kLane];
        for (int32_t i = 0; i < kLane; ++i) slots[i] = slot(next + i);
        across(load_row, next, job.drawn.height, slots);
      }
      down(y, slot, finished);
      store_samples(finished, out.width, out.plane(channel) + int64_t(y) * out.width);
    }
  }
  return arena.used;
}

// Columns before rows, where Pillow does it so.
template <class P>
int64_t resample_down_first(const Job& job, const Planes<typename P::Sample>& out, Arena arena) {
  using Work = typename P::Work;
  const Across<P> across(job, &arena);
  const Down<P> down(job, job.drawn.width, &arena);
  Work* source = arena.take<Work>(across.pitch * down.table.taps);
  Work* finished = arena.take<Work>(padded(out.width) * kLane);
  if (arena.base == nullptr) return arena.used;
  for (int32_t channel = 0; channel < out.channels; ++channel) {
    const auto load_row = [&](int32_t y, Work* to) {
      const int32_t top = down.table.start[y];
      const auto row = [&](int32_t r) {
        Work* loaded = source + (r - top) * across.pitch;
        load_crop_row<P>(job, channel, r, loaded);
        return loaded;
      };
      down(y, row, to);
    };
    Work* rows[kLane];
    for (int32_t i = 0; i < kLane; ++i) rows[i] = finished + i * padded(out.width);
    for (int32_t y = 0; y < out.height; y += kLane) {
      across(load_row, y, out.height, rows);
      for (int32_t i = 0; i < kLane && y + i < out.height; ++i) {
        store_samples(rows[i], out.width, out.plane(channel) + int64_t(y + i) * out.width);
      }
    }
  }
  return arena.used;
}

// Returns the bytes of scratch it takes; does nothing else where there are none.
template <class P>
int64_t resample(const Job& job, const Planes<typename P::Sample>& out, Arena arena) {
  const Drawn& d = job.drawn;
  const bool down_first = P::kPillow && pillow_down_first(d.height, d.width, out.height, out.width);
  return down_first ? resample_down_first<P>(job, out, arena)
                    : resample_rows_first<P>(job, out, arena);
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
