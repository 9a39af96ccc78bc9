// The masked loss where images are levels of uint8 in red, green and blue, and patches have at most
// 256 pixels, as MAE has them: what loss_team.h computes, to the bit, with a warp for each row of
// the prediction. A thread loads 8 pixels of each channel at once, and its part of the prediction
// beside them: nothing waits for memory twice.
#pragma once

#include "patch/loss_team.h"

namespace fastssl {
namespace patch {
namespace {

constexpr int kLevelsOf = 8;  // pixels that a thread loads of a channel

// What a team has in shared memory; the target follows.
struct alignas(16) LevelAffine {
  float centre, scale, shift;
};
struct LevelNumbers {
  Moments moments[kColors];
  LevelAffine affine[kColors];
};
static_assert(sizeof(LevelNumbers) <= kLevelScratch * sizeof(float), "scratch memory of a row");

// a / b as a division rounds it, where `inverse` is 1 / b, rounded. (P. Markstein, 1990.) For
// finite numbers.
FASTSSL_TEAM inline double quotient(double a, double b, double inverse) {
  double q = a * inverse;
  q = fused(fused(-b, q, a), inverse, q);
  return fused(fused(-b, q, a), inverse, q);
}

// c + the sum of a's bytes times b's.
FASTSSL_TEAM inline uint32_t products(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
  return __dp4a(a, b, c);
#else
  for (int k = 0; k < 32; k += 8) c += (a >> k & 255) * (b >> k & 255);
  return c;
#endif
}

template <class Team>
FASTSSL_TEAM uint32_t sum_of(const Team& team, uint32_t x) {
  return uint32_t(team.sum(int64_t(x)));
}
#ifdef __CUDACC__
FASTSSL_TEAM inline uint32_t sum_of(const WarpTeam&, uint32_t x) {
  return __reduce_add_sync(~0u, x);
}
#endif

// Where number `e` of the target is: 16 bytes change places with their neighbours in every other
// row of the 32 banks, so that neither threads that write 96 bytes each nor threads that read 32
// bytes each meet in a bank.
FASTSSL_TEAM inline int32_t placed_at(int32_t e) { return e ^ (e >> 5 & 1) << 2; }

// What becomes of the levels of channel `c`, from what all channels are.
FASTSSL_TEAM inline LevelAffine affine_of(const LossBatch& batch, const Moments* moments,
                                          int32_t c) {
  const LevelRule& rule = batch.levels;
  const LevelChannel& own = rule.channel[c];
  if (!batch.norm_pix) return {0, float(own.scale), float(own.shift)};
  double mean = moments[0].mean, factor;
  if (batch.statistics == Statistics::kPatchChannel) {
    mean = moments[c].mean;
    const double variance = quotient(moments[c].squares, rule.area - 1, rule.inverse_area_less);
    factor = 1 / (square_root(variance) + 1e-6);
  } else {
    double squares = moments[0].squares;
    FASTSSL_UNROLL for (int k = 1; k < kColors; ++k) {
      const double d = moments[k].mean - mean;
      mean += k == 1 ? d * 0.5 : quotient(d, 3, 1.0 / 3);
      squares += moments[k].squares + d * d * rule.between[k];
    }
    const double variance = quotient(squares, rule.width - 1, rule.inverse_width_less);
    factor = 1 / square_root(variance + 1e-6);
  }
  const float centre = float(quotient(mean - own.shift, own.scale, own.inverse));
  return {centre, float(own.scale * factor),
          float((double(centre) * own.scale + own.shift - mean) * factor)};
}

// A thread's part of a row: of the patch and of the prediction. `kShare`: how many times 8 pixels
// of a channel are its.
template <class T, int kCount, int kShare>
struct LevelRow {
  static constexpr int kPacks = kShare * kColors * kLevelsOf / kCount;
  Raw<uint8_t, kLevelsOf> level[kShare][kColors];
  Raw<T, kCount> pred[kPacks];
};

template <class T, int kCount, int kShare, class Team>
struct Levels {
  const Team& team;
  int32_t rank;
  const LossBatch& batch;
  LevelNumbers* numbers;
  float* target;
  int32_t offset[kShare];  // of a thread's pixels, in a patch

  FASTSSL_TEAM int32_t first(int s) const { return (rank + s * team.size) * kLevelsOf; }
  FASTSSL_TEAM bool has(int s) const { return first(s) < batch.pixels.area(); }
  FASTSSL_TEAM int32_t pack(int a) const { return rank + a * team.size; }
  FASTSSL_TEAM bool has_pack(int a) const { return pack(a) * kCount < batch.pixels.width(); }

  FASTSSL_TEAM void set_offsets() {
    const Pixels& p = batch.pixels;
    FASTSSL_UNROLL for (int s = 0; s < kShare; ++s) {
      const int32_t line = first(s) / p.patch[2], frame = line / p.patch[1];
      offset[s] = first(s) - line * p.patch[2] + (line - frame * p.patch[1]) * p.stride[1] +
                  frame * p.stride[0];
    }
  }

  // As Pixels::begin, with strides of 32 bits.
  FASTSSL_TEAM int64_t begin(int32_t sample, int32_t l) const {
    const Pixels& p = batch.pixels;
    const int32_t line = p.grid_columns.quotient(l), frame = p.grid_rows.quotient(line);
    const int32_t* stride = batch.levels.image_stride;
    return int64_t(sample) * stride[0] + int64_t(frame) * stride[1] +
           int64_t(line - frame * p.grid[1]) * stride[2] +
           int64_t(l - line * p.grid[2]) * stride[3];
  }

  FASTSSL_TEAM void load(const uint8_t* from, const T* pred,
                         LevelRow<T, kCount, kShare>* row) const {
    FASTSSL_UNROLL for (int s = 0; s < kShare; ++s) {
      FASTSSL_UNROLL for (int c = 0; c < kColors; ++c) {
        row->level[s][c] = {};
        if (has(s)) {
          row->level[s][c] =
              load_raw<kLevelsOf>(from + offset[s] + c * batch.pixels.channel_stride);
        }
      }
    }
    FASTSSL_UNROLL for (int a = 0; a < row->kPacks; ++a) {
      row->pred[a] = {};
      if (has_pack(a)) row->pred[a] = load_raw<kCount>(pred + pack(a) * kCount);
    }
  }

  // Leaves the channels' numbers in shared memory; they may be read after a barrier.
  FASTSSL_TEAM void find_numbers(const LevelRow<T, kCount, kShare>& row) const {
    const LevelRule& rule = batch.levels;
    if (batch.norm_pix) {
      uint32_t sum[kColors] = {}, squares[kColors] = {};
      FASTSSL_UNROLL for (int c = 0; c < kColors; ++c) {
        FASTSSL_UNROLL for (int s = 0; s < kShare; ++s) {
          FASTSSL_UNROLL for (int w = 0; w < 2; ++w) {
            const uint32_t x = row.level[s][c].word[w];
            sum[c] = products(x, 0x01010101, sum[c]);
            squares[c] = products(x, x, squares[c]);
          }
        }
        sum[c] = sum_of(team, sum[c]);
        squares[c] = sum_of(team, squares[c]);
      }
      FASTSSL_ROLLED for (int32_t c = rank; c < kColors; c += team.size) {
        const uint32_t s = c == 0 ? sum[0] : c == 1 ? sum[1] : sum[2];
        const uint32_t q = c == 0 ? squares[0] : c == 1 ? squares[1] : squares[2];
        const LevelChannel& own = rule.channel[c];
        const double mean = quotient(double(s), rule.area, rule.inverse_area);
        const double spread = quotient(double(q * uint32_t(batch.pixels.area()) - s * s), rule.area,
                                       rule.inverse_area);
        numbers->moments[c] = {mean * own.scale + own.shift, spread * own.square};
      }
      team.sync();
    }
    FASTSSL_ROLLED for (int32_t c = rank; c < kColors; c += team.size) {
      numbers->affine[c] = affine_of(batch, numbers->moments, c);
    }
  }

  FASTSSL_TEAM void write_target(const LevelRow<T, kCount, kShare>& row) const {
    LevelAffine f[kColors];
    FASTSSL_UNROLL for (int c = 0; c < kColors; ++c) f[c] = numbers->affine[c];
    FASTSSL_UNROLL for (int s = 0; s < kShare; ++s) {
      if (!has(s)) continue;
      FASTSSL_UNROLL for (int w = 0; w < 2; ++w) {
        Pack<float, 4> by_pixel[kColors], by_color[kColors];  // the same numbers
        FASTSSL_UNROLL for (int e = 0; e < 4 * kColors; ++e) {
          const int c = e % kColors, k = e / kColors;
          const float level = number_at(row.level[s][c], 4 * w + k);
          const float number = fused(level - f[c].centre, f[c].scale, f[c].shift);
          by_pixel[e / 4].x[e % 4] = by_color[c].x[k] = number;
        }
        const int32_t pixel = first(s) + 4 * w;
        FASTSSL_UNROLL for (int c = 0; c < kColors; ++c) {
          if (batch.channels_last) {
            store_pack(target + placed_at(pixel * kColors + 4 * c), by_pixel[c]);
          } else {
            store_pack(target + placed_at(c * batch.pixels.area() + pixel), by_color[c]);
          }
        }
      }
    }
  }

  template <Kind kKind>
  FASTSSL_TEAM double compare(const LevelRow<T, kCount, kShare>& row, T* gradient,
                              float factor) const {
    double total = 0;
    FASTSSL_UNROLL for (int a = 0; a < row.kPacks; ++a) {
      if (!has_pack(a)) continue;
      Pack<T, kCount> out;
      float some = 0;
      FASTSSL_UNROLL for (int q = 0; q < kCount; q += 4) {
        const auto t = load_pack<4>(target + placed_at(pack(a) * kCount + q));
        FASTSSL_UNROLL for (int k = 0; k < 4; ++k) {
          const float d = number_at(row.pred[a], q + k) - t.x[k];
          float slope = d;  // of squares: half of it, `factor` is twice the other kinds'
          some += kKind == Kind::kMse ? d * d : distance(kKind, d, &slope);
          narrow(slope * factor, &out.x[q + k]);
        }
      }
      total += double(some);
      if (batch.gradient) store_pack(gradient + pack(a) * kCount, out);
    }
    return total;
  }
};

// As loss_rows; `scratch` is aligned to 16 bytes.
template <class T, int kCount, int kShare, class Team, class Fail>
FASTSSL_TEAM void level_rows(const Team& team, const LossBatch& batch, int64_t number,
                             float* scratch, const Fail& fail) {
  const DevicePlan& plan = batch.plan;
  // Rows and samples have 32 bits here: the host has seen to it.
  const int32_t each = int32_t(batch.rows_each()), teams = int32_t(batch.teams);
  const int32_t rows = int32_t(batch.rows()), width = batch.pixels.width();
  Levels<T, kCount, kShare, Team> levels{
      team, team.rank, batch, reinterpret_cast<LevelNumbers*>(scratch), scratch + kLevelScratch,
      {}};
  levels.set_offsets();
  const float factor = float(batch.upstream / removed_count(team, plan) / width);
  double total = 0;
  const auto index = [&](int32_t b, int32_t n) {
    return batch.removed_only ? plan.shuffle[b * plan.length + plan.keep + n]
                              : plan.restore[b * plan.length + n];
  };
  const auto gradient = [&](int32_t r) {
    return static_cast<T*>(batch.gradient) + int64_t(r) * width;
  };
  int64_t next = index(batch.levels.rows.quotient(int32_t(number)),
                       int32_t(number) - batch.levels.rows.quotient(int32_t(number)) * each);
  for (int32_t r = int32_t(number); r < rows; r += teams) {
    const int64_t found = next;
    const int32_t sample = batch.levels.rows.quotient(r), row = r - sample * each;
    if (r + teams < rows) {
      const int32_t b = batch.levels.rows.quotient(r + teams);
      next = index(b, r + teams - b * each);
    }
    if (batch.removed_only && uint64_t(found) >= uint64_t(plan.length)) return fail();
    if (!batch.removed_only && found < plan.kept(sample)) {
      FASTSSL_UNROLL for (int a = 0; a < LevelRow<T, kCount, kShare>::kPacks; ++a) {
        if (batch.gradient && levels.has_pack(a)) {
          store_pack(gradient(r) + levels.pack(a) * kCount, Pack<T, kCount>{});
        }
      }
      continue;
    }
#ifdef __CUDACC__
    asm volatile("" : "+r"(levels.rank));  // addresses are found anew: registers are scarcer
#endif
    LevelRow<T, kCount, kShare> x;
    levels.load(static_cast<const uint8_t*>(batch.pixels.data) +
                    levels.begin(sample, batch.removed_only ? int32_t(found) : row),
                static_cast<const T*>(batch.pred.data) +
                    int64_t(sample) * batch.levels.pred_stride[0] +
                    int64_t(row) * batch.levels.pred_stride[1],
                &x);
    levels.find_numbers(x);
    team.sync();
    levels.write_target(x);
    team.sync();
    switch (batch.kind) {
      case Kind::kMse:
        total += levels.template compare<Kind::kMse>(x, gradient(r), factor + factor);
        break;
      case Kind::kL1:
        total += levels.template compare<Kind::kL1>(x, gradient(r), factor);
        break;
      default:
        total += levels.template compare<Kind::kSmoothL1>(x, gradient(r), factor);
    }
  }
  total = team.sum(total);
  if (team.rank == 0) batch.partial[number] = total;
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
