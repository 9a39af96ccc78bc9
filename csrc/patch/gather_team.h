// Visible patches from images: a team writes the rows of an output, 16 bytes a thread at a time.
#pragma once

#include "patch/element_team.h"

namespace fastssl {
namespace patch {

constexpr int kGatherPacks = 3;  // for a thread of a launch

struct GatherBatch {
  Pixels pixels;
  DevicePlan plan;
  RowDivisor keeps;    // by plan.keep
  int32_t radix[3];    // of the output's digits, fastest first, but the last
  Divisor divisor[3];  // by those
  int32_t stride[4];   // in the images, of each digit
  bool channels_last;  // the channel is the first digit, else the last
  bool packed;         // a pack of the output is one in the images, of one channel
  void* out;           // [batch, keep, width]
  FASTSSL_HD int64_t rows() const { return plan.batch * plan.keep; }
};

namespace {

template <class Source, class Out, int kCount, class Team, class Fail>
FASTSSL_TEAM void gather_row(const Team& team, const GatherBatch& batch, int64_t row,
                             const Fail& fail) {
  using C = Compute<Out>;
  const DevicePlan& plan = batch.plan;
  const Pixels& pixels = batch.pixels;
  const int32_t packs = pixels.width() / kCount;
  const int64_t b = batch.keeps.sample(row), k = row - b * plan.keep;
  Out* to = static_cast<Out*>(batch.out) + row * pixels.width();
  if (k >= plan.kept(b)) {
    team.for_each(packs, [&](int64_t i) { store_pack(to + i * kCount, Pack<Out, kCount>{}); });
    return;
  }
  const int64_t l = plan.shuffle[b * plan.length + k];
  if (uint64_t(l) >= uint64_t(plan.length)) return fail();
  const Source* from = static_cast<const Source*>(pixels.data) + pixels.begin(b, l);
  if (kCount > 1 && batch.packed) {
    // All that is read is on its way before the first of it is needed.
    constexpr int kAhead = sizeof(Out) == 8 ? 2 : kGatherPacks;
    for (int32_t i = team.rank; i < packs; i += kAhead * team.size) {
      Raw<Source, kCount> x[kAhead];
      int32_t channel[kAhead];
      FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
        const int32_t e = (i + a * team.size) * kCount;
        const int32_t line = batch.divisor[0].quotient(e), frame = batch.divisor[1].quotient(line);
        channel[a] = batch.divisor[2].quotient(frame);
        const int32_t offset =
            (e - line * batch.radix[0]) + (line - frame * batch.radix[1]) * batch.stride[1] +
            (frame - channel[a] * batch.radix[2]) * batch.stride[2] + channel[a] * batch.stride[3];
        x[a] = {};
        if (i + a * team.size < packs) x[a] = load_raw<kCount>(from + offset);
      }
      FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
        if (i + a * team.size >= packs) return;
        C scale, shift;
        pixels.numbers_of(channel[a], &scale, &shift);
        Pack<Out, kCount> pack;
        FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
          narrow(fused(C(number_at(x[a], k)), scale, shift), &pack.x[k]);
        }
        store_pack(to + int64_t(i + a * team.size) * kCount, pack);
      }
    }
    return;
  }
  Odometer<4> at, step;
  at.set(team.rank * kCount, batch.radix, batch.stride);
  step.set(team.size * kCount, batch.radix, batch.stride);
  FASTSSL_ROLLED for (int32_t i = team.rank; i < packs; i += team.size) {
    Pack<Source, kCount> x;
    int32_t channel[kCount];
    Odometer<4> in = at;
    FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
      x.x[k] = from[in.offset];
      channel[k] = batch.channels_last ? in.digit[0] : in.digit[3];
      in.next(batch.radix, batch.stride);
    }
    Pack<Out, kCount> pack;
    FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
      C scale, shift;
      pixels.numbers_of(channel[k], &scale, &shift);
      narrow(fused(C(widened(x.x[k])), scale, shift), &pack.x[k]);
    }
    store_pack(to + int64_t(i) * kCount, pack);
    at.add(step, batch.radix, batch.stride);
  }
}

// Rows first, first + stride, ...
template <class Source, class Out, int kCount, class Team, class Fail>
FASTSSL_TEAM void gather_rows(const Team& team, const GatherBatch& batch, int64_t first,
                              int64_t stride, const Fail& fail) {
  for (int64_t row = first; row < batch.rows(); row += stride) {
    gather_row<Source, Out, kCount>(team, batch, row, fail);
  }
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
