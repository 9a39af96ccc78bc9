// Visible patches from images: a team writes the rows of an output, 16 bytes a thread at a time.
#pragma once

#include "patch/element_team.h"

namespace fastssl {
namespace patch {

struct GatherBatch {
  Pixels pixels;
  DevicePlan plan;
  int32_t radix[3];    // of the output's digits, fastest first, but the last
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
  const int64_t b = row / plan.keep, k = row - b * plan.keep;
  Out* to = static_cast<Out*>(batch.out) + row * pixels.width();
  if (k >= plan.kept(b)) {
    team.for_each(packs, [&](int64_t i) { store_pack(to + i * kCount, Pack<Out, kCount>{}); });
    return;
  }
  const int64_t l = plan.shuffle[b * plan.length + k];
  if (uint64_t(l) >= uint64_t(plan.length)) return fail();
  const Source* from = static_cast<const Source*>(pixels.data) + pixels.begin(b, l);
  Odometer<4> at, step;
  at.set(team.rank * kCount, batch.radix, batch.stride);
  step.set(team.size * kCount, batch.radix, batch.stride);
  if (kCount > 1 && batch.packed) {
    constexpr int kAhead = sizeof(Out) == 8 ? 1 : 2;
    for (int32_t i = team.rank; i < packs; i += kAhead * team.size) {
      Pack<Source, kCount> x[kAhead];
      int32_t channel[kAhead];
      FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
        x[a] = i + a * team.size < packs ? load_pack<kCount>(from + at.offset)
                                         : Pack<Source, kCount>{};
        channel[a] = at.digit[3];
        at.add(step, batch.radix, batch.stride);
      }
      FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
        if (i + a * team.size >= packs) continue;
        const C scale = C(pixels.scale_of(channel[a])), shift = C(pixels.shift_of(channel[a]));
        Pack<Out, kCount> pack;
        FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
          narrow(fused(C(widened(x[a].x[k])), scale, shift), &pack.x[k]);
        }
        store_pack(to + int64_t(i + a * team.size) * kCount, pack);
      }
    }
    return;
  }
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
      const int32_t c = channel[k];
      narrow(fused(C(widened(x.x[k])), C(pixels.scale_of(c)), C(pixels.shift_of(c))), &pack.x[k]);
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
