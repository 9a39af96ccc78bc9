// The plan of a mask for one sample, drawn by a team: the same bits on the CPU, in CUDA and in
// ops/patch/reference_plans.py. Float64 arithmetic, every operation rounded on its own.
#pragma once

#include "common/philox.h"
#include "common/team.h"
#include "patch/plan.h"

namespace fastssl {
namespace patch {
namespace {

FASTSSL_HD inline Draws draws_of(const PlanBatch& batch, int64_t b) {
  return {uint64_t(batch.seed), uint64_t(batch.step ? *batch.step : batch.step_value),
          uint64_t(batch.ids[b]), Purpose::kMask, 0};
}

FASTSSL_HD inline int32_t bits_in(uint64_t x) {
#ifdef __CUDA_ARCH__
  return __popcll(x);
#else
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  return int32_t((((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u) >> 56);
#endif
}

// The columns [begin, end) that are in word `w` of a row.
FASTSSL_HD inline uint64_t columns_of(int32_t w, int32_t begin, int32_t end) {
  begin = greatest(begin - 64 * w, 0);
  end = least(end - 64 * w, 64);
  return begin < end ? ~uint64_t(0) >> (64 - (end - begin)) << begin : 0;
}

// Where key `i` is: in every other row of the 32 banks backwards, so that the keys which half a
// warp compares, 1, 2, 4 or 8 apart, are all in banks of their own. One thread has them in order.
template <class Team>
FASTSSL_TEAM int32_t key_place(const Team& team, int32_t i) {
  return team.size == 1 ? i : i ^ (-(i >> 4 & 1) & 15);
}

// A barrier for what the 32 threads of a warp alone have written.
template <class Team>
FASTSSL_TEAM void sync_warp(const Team& team) {
  team.sync();
}
#ifdef __CUDACC__
FASTSSL_TEAM inline void sync_warp(const CudaTeam&) { __syncwarp(); }
#endif

// Sorts distinct keys; there is room for a power of two of them. (A bitonic network: Batcher 1968.)
// Keys up to kNear apart are one warp's: its 32 threads have 64 keys that follow each other.
template <class Team>
FASTSSL_TEAM void sort_keys(const Team& team, uint64_t* keys, int64_t count) {
  constexpr int32_t kNear = 32;
  const int32_t padded = int32_t(power_of_two(count));
  for (int32_t i = int32_t(count) + team.rank; i < padded; i += team.size) {
    keys[key_place(team, i)] = ~uint64_t(0);
  }
  team.sync();
  for (int32_t run = 2; run <= padded; run *= 2) {
    for (int32_t apart = run / 2; apart > 0; apart /= 2) {
      for (int32_t i = team.rank; i < padded / 2; i += team.size) {
        const int32_t first = (i & ~(apart - 1)) * 2 + (i & (apart - 1));
        const int32_t a = key_place(team, first), b = key_place(team, first + apart);
        const uint64_t x = keys[a], y = keys[b];
        if ((x > y) == ((first & run) == 0)) {
          keys[a] = y;
          keys[b] = x;
        }
      }
      const int32_t next = apart > 1 ? apart / 2 : run;
      if (apart > kNear || next > kNear) {
        team.sync();
      } else {
        sync_warp(team);
      }
    }
  }
  team.sync();
}

// Orders a complete mask, the kept patches before the removed ones; returns how many are kept.
// `partial` has a word for each thread.
template <class Team>
FASTSSL_TEAM int64_t in_raster_order(const Team& team, const PlanRow& row, int64_t length,
                                     uint64_t* partial) {
  const int64_t share = (length + team.size - 1) / team.size;
  const int64_t begin = least(length, team.rank * share), end = least(length, begin + share);
  int64_t kept = 0;
  for (int64_t p = begin; p < end; ++p) kept += !row.mask[p];
  partial[team.rank] = uint64_t(kept);
  team.sync();
  int64_t before = 0, total = 0;
  for (int32_t t = 0; t < team.size; ++t) {
    before += t < team.rank ? int64_t(partial[t]) : 0;
    total += int64_t(partial[t]);
  }
  for (int64_t p = begin; p < end; ++p) {
    const int64_t removed = row.mask[p];
    const int64_t place = removed ? total + p - before : before;
    row.restore[p] = place;
    row.shuffle[place] = p;
    before += 1 - removed;
  }
  return total;
}

template <class Team>
FASTSSL_TEAM void draw_plan(const Team& team, const RandomPlan& plan, const PlanBatch& batch,
                            int64_t b, uint64_t* scratch) {
  const Draws draws = draws_of(batch, b);
  const PlanRow row = batch.row(b);
  const int64_t cells = plan.cells();
  const int64_t keep = plan.lengths ? plan.lengths[b] : plan.keep;
  uint64_t* keys = scratch;
  team.for_each((cells + 3) / 4, [&](int64_t n) {
    const Words x = draws.block(uint32_t(n));
    for (int64_t i = 4 * n; i < least(cells, 4 * n + 4); ++i) {
      keys[key_place(team, int32_t(i))] = uint64_t(x.word[i - 4 * n]) << 32 | uint64_t(i);
    }
  });
  team.sync();
  sort_keys(team, keys, cells);
  if (plan.shuffled()) {
    team.for_each(cells, [&](int64_t i) {
      const int64_t p = int64_t(uint32_t(keys[key_place(team, int32_t(i))]));
      row.shuffle[i] = p;
      row.restore[p] = i;
      row.mask[p] = i >= keep;
    });
    return;
  }
  const int32_t *grid = plan.grid, *cell = plan.cell;
  const int32_t down = grid[1] / cell[1], across = grid[2] / cell[2];
  team.for_each(cells, [&](int64_t i) {
    const int32_t c = int32_t(uint32_t(keys[key_place(team, int32_t(i))]));
    const int32_t frame = c / (down * across) * cell[0], top = c / across % down * cell[1];
    const int32_t left = c % across * cell[2];
    for (int32_t f = frame; f < frame + cell[0]; ++f) {
      for (int32_t y = top; y < top + cell[1]; ++y) {
        bool* out = row.mask + (int64_t(f) * grid[1] + y) * grid[2] + left;
        for (int32_t x = 0; x < cell[2]; ++x) out[x] = i >= keep;
      }
    }
  });
  team.sync();
  in_raster_order(team, row, batch.length, scratch + power_of_two(cells));
}

template <class Team>
FASTSSL_TEAM void clear_bits(const Team& team, const Bits& bits) {
  team.for_each(bits.words(), [&](int64_t i) { bits.word[i] = 0; });
  team.sync();
}

template <class Team>
FASTSSL_TEAM int64_t count_bits(const Team& team, const Bits& bits, const Block& block) {
  const int32_t pitch = bits.pitch();
  int64_t count = 0;
  team.for_each(block.height, pitch, [&](int32_t y, int32_t w) {
    count += bits_in(bits.word[int64_t(block.top + y) * pitch + w] &
                     columns_of(w, block.left, block.left + block.width));
  });
  return team.sum(count);
}

template <class Team>
FASTSSL_TEAM void set_bits(const Team& team, const Bits& bits, const Block& block) {
  const int32_t pitch = bits.pitch();
  team.for_each(block.height, pitch, [&](int32_t y, int32_t w) {
    bits.word[int64_t(block.top + y) * pitch + w] |=
        columns_of(w, block.left, block.left + block.width);
  });
  team.sync();
}

// Sets the bit that has `skip` clear ones before it, of which there are more than that.
template <class Team>
FASTSSL_TEAM void set_clear_bit(const Team& team, const Bits& bits, int64_t skip) {
  const int32_t pitch = bits.pitch();
  int64_t at = 0;
  uint64_t clear = 0;
  for (;; ++at) {
    clear = ~bits.word[at] & columns_of(int32_t(at % pitch), 0, bits.columns);
    const int32_t count = bits_in(clear);
    if (skip < count) break;
    skip -= count;
  }
  team.sync();  // all have looked
  for (; skip > 0; --skip) clear &= clear - 1;
  if (team.rank == 0) bits.word[at] |= clear & ~(clear - 1);
  team.sync();
}

FASTSSL_HD inline double between(double low, double high, uint32_t word) {
  return low + (high - low) * unit(word);
}

FASTSSL_HD inline int64_t removed_count(const BlockPlan& plan, const Draws& draws, int64_t b) {
  const int64_t length = int64_t(plan.rows) * plan.columns;
  int64_t count = 0;
  if (plan.counts) {
    count = plan.counts[b];
  } else {
    const Words x = draws.block(0);
    const double* range = plan.ratio[below(x.word[1], uint64_t(plan.ranges))];
    if (unit(x.word[0]) < plan.probability) {
      count = int64_t(double(length) * between(range[0], range[1], x.word[2]));
    }
  }
  return least(greatest(count, int64_t(0)), length);
}

// The rectangle of attempt `n`; empty where it is as high or as wide as the grid.
FASTSSL_HD inline Block attempted(const BlockPlan& plan, const Draws& draws, uint32_t n,
                                  int64_t most) {
  const Words x = draws.block(kAttempts + n);
  const double area = between(double(plan.area_least), double(most), x.word[0]);
  const double aspect = portable_exp(between(plan.aspect[0], plan.aspect[1], x.word[1]));
  const double h = round_even(square_root(area * aspect));
  const double w = round_even(square_root(area / aspect));
  if (!(h < plan.rows && w < plan.columns)) return {0, 0, 0, 0};
  const int32_t height = int32_t(h), width = int32_t(w);
  return {int32_t(below(x.word[2], uint64_t(plan.rows - height + 1))),
          int32_t(below(x.word[3], uint64_t(plan.columns - width + 1))), height, width};
}

template <class Team>
FASTSSL_TEAM void draw_plan(const Team& team, const BlockPlan& plan, const PlanBatch& batch,
                            int64_t b, uint64_t* scratch) {
  const Draws draws = draws_of(batch, b);
  const PlanRow row = batch.row(b);
  const Bits bits{scratch, plan.rows, plan.columns};
  const int64_t count = removed_count(plan, draws, b);
  clear_bits(team, bits);
  int64_t done = 0;
  uint32_t attempt = 0;
  while (done < count) {
    const int64_t most = least(count - done, plan.area_most);
    int64_t added = 0;
    for (int32_t i = 0; i < 10 && added == 0; ++i, ++attempt) {
      const Block block = attempted(plan, draws, attempt, most);
      const int64_t area = int64_t(block.height) * block.width;
      if (area == 0) continue;
      const int64_t fresh = area - count_bits(team, bits, block);
      if (0 < fresh && fresh <= most) {
        set_bits(team, bits, block);
        added = fresh;
      }
    }
    if (added == 0) break;
    done += added;
  }
  for (uint32_t i = 0; plan.exact && done < count; ++i, ++done) {
    const uint32_t word = draws.block(kSpots + i / 4).word[i % 4];
    set_clear_bit(team, bits, below(word, uint64_t(batch.length - done)));
  }
  const Words x = plan.roll ? draws.block(1) : Words{};
  const int32_t down = int32_t(below(x.word[0], uint64_t(plan.rows)));
  const int32_t across = int32_t(below(x.word[1], uint64_t(plan.columns)));
  team.for_each(plan.rows, plan.columns, [&](int32_t y, int32_t c) {
    const int32_t from_y = y < down ? y - down + plan.rows : y - down;
    const int32_t from_c = c < across ? c - across + plan.columns : c - across;
    row.mask[int64_t(y) * plan.columns + c] = bits.at(from_y, from_c);
  });
  team.sync();
  const int64_t kept = in_raster_order(team, row, batch.length, scratch + bits.words());
  if (team.rank == 0 && batch.lengths) batch.lengths[b] = kept;
}

template <class Team>
FASTSSL_TEAM void draw_plan(const Team& team, const InversePlan& plan, const PlanBatch& batch,
                            int64_t b, uint64_t* scratch) {
  const Draws draws = draws_of(batch, b);
  const PlanRow row = batch.row(b);
  const Words x = draws.block(0), shift = plan.roll ? draws.block(1) : Words{};
  const double aspect = portable_exp(between(plan.aspect[0], plan.aspect[1], x.word[0]));
  const double h = square_root(double(plan.keep) * aspect);
  const double w = square_root(double(plan.keep) / aspect);
  int32_t height = int32_t(least(-floor_of(-h), double(plan.rows)));
  int32_t width = int32_t(least(-floor_of(-w), double(plan.columns)));
  while (int64_t(height) * width < plan.keep) {
    ++(height < plan.rows ? height : width);
  }
  const int32_t top = int32_t(below(x.word[1], uint64_t(plan.rows - height + 1)));
  const int32_t left = int32_t(below(x.word[2], uint64_t(plan.columns - width + 1)));
  const int32_t down = int32_t(below(shift.word[0], uint64_t(plan.rows)));
  const int32_t across = int32_t(below(shift.word[1], uint64_t(plan.columns)));
  team.for_each(plan.rows, plan.columns, [&](int32_t y, int32_t c) {
    const int32_t in_y = (y < down ? y - down + plan.rows : y - down) - top;
    const int32_t in_c = (c < across ? c - across + plan.columns : c - across) - left;
    const bool inside = 0 <= in_y && in_y < height && 0 <= in_c && in_c < width;
    row.mask[int64_t(y) * plan.columns + c] = !(inside && int64_t(in_y) * width + in_c < plan.keep);
  });
  team.sync();
  in_raster_order(team, row, batch.length, scratch);
}

FASTSSL_HD inline Block placed(const MultiblockPlan& plan, const int32_t (&size)[2],
                               const Words& x) {
  const int32_t free[2] = {plan.rows - size[0], plan.columns - size[1]};
  const int32_t spots[2] = {plan.inclusive ? free[0] + 1 : greatest(free[0], 1),
                            plan.inclusive ? free[1] + 1 : greatest(free[1], 1)};
  return {int32_t(below(x.word[0], uint64_t(spots[0]))),
          int32_t(below(x.word[1], uint64_t(spots[1]))), size[0], size[1]};
}

// The context's place; `bits` become the targets that it keeps clear of.
template <class Team>
FASTSSL_TEAM Block placed_context(const Team& team, const MultiblockPlan& plan, const Draws& draws,
                                  const Bits& bits) {
  const int64_t area = int64_t(plan.context[0]) * plan.context[1];
  uint32_t attempt = 0;
  for (int32_t targets = plan.allow_overlap ? 0 : plan.targets;; --targets) {
    clear_bits(team, bits);
    for (int32_t t = 0; t < targets; ++t) {
      set_bits(team, bits, placed(plan, plan.target, draws.block(kSpots + t)));
    }
    for (int32_t i = 0; i < kTries; ++i, ++attempt) {
      const Block block = placed(plan, plan.context, draws.block(kAttempts + attempt));
      if (area - count_bits(team, bits, block) > plan.min_keep || targets == 0) return block;
    }
  }
}

template <class Team>
FASTSSL_TEAM void draw_plan(const Team& team, const MultiblockPlan& plan, const PlanBatch& batch,
                            int64_t b, uint64_t* scratch) {
  const Draws draws = draws_of(batch, b);
  const PlanRow row = batch.row(b);
  const Bits bits{scratch, plan.rows, plan.columns};
  const int64_t area = int64_t(plan.target[0]) * plan.target[1];
  for (int32_t t = 0; t < plan.targets; ++t) {
    const Block block = placed(plan, plan.target, draws.block(kSpots + t));
    int64_t* ids = plan.target_ids + (b * plan.targets + t) * area;
    team.for_each(block.height, block.width, [&](int32_t y, int32_t c) {
      ids[int64_t(y) * block.width + c] = int64_t(block.top + y) * plan.columns + block.left + c;
    });
  }
  const Block block = placed_context(team, plan, draws, bits);
  team.for_each(plan.rows, plan.columns, [&](int32_t y, int32_t c) {
    const bool inside = block.top <= y && y < block.top + block.height && block.left <= c &&
                        c < block.left + block.width;
    row.mask[int64_t(y) * plan.columns + c] = !inside || bits.at(y, c);
  });
  team.sync();
  const int64_t kept = in_raster_order(team, row, batch.length, scratch + bits.words());
  if (team.rank == 0 && batch.lengths) batch.lengths[b] = kept;
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
