// Tiles and tokens of the pretext tasks, by threads that need not meet.
#pragma once

#include "patch/element_team.h"
#include "patch/tiles.h"
#include "patch/tokens_draw.h"

namespace fastssl {
namespace patch {

struct TokenBatch {
  TokenRule rule;
  const void* ids;                // [batch, length], int32 or int64
  const bool* special;            // may be null
  const int64_t *samples, *step;  // of which step may be null: step_value
  int64_t step_value, seed, batch, length;
  bool wide;  // int64
  void *inputs, *labels;
};

namespace {

struct Wide {
  uint64_t low, high;
};

// A plane of a tile, T of the elements' size: 16 bytes of it at a time where planes are whole
// packs.
template <class T, int kCount, class Team>
FASTSSL_TEAM void tile_plane(const Team& team, const Tiles& t, int64_t plane) {
  const int64_t tile = plane / t.channels, channel = plane - tile * t.channels;
  const T* from = reinterpret_cast<const T*>(t.images) + row_begin(t, tile, channel, 0);
  T* to = reinterpret_cast<T*>(t.out) + plane * t.height * t.width;
  const int32_t radix = int32_t(t.width);
  const int32_t stride[2] = {int32_t(t.stride[3]), int32_t(t.stride[2])};
  Odometer<2> at, step;
  at.set(team.rank * kCount, &radix, stride);
  step.set(team.size * kCount, &radix, stride);
  team.for_each(t.height * t.width / kCount, [&](int64_t i) {
    Pack<T, kCount> pack;
    Odometer<2> in = at;
    FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
      pack.x[k] = from[in.offset];
      in.next(&radix, stride);
    }
    store_pack(to + i * kCount, pack);
    at.add(step, &radix, stride);
  });
}

template <class T, int kCount, class Team>
FASTSSL_TEAM void tile_planes(const Team& team, const Tiles& t, int64_t first, int64_t stride) {
  for (int64_t plane = first; plane < t.batch * t.count * t.channels; plane += stride) {
    tile_plane<T, kCount>(team, t, plane);
  }
}

template <class Id>
FASTSSL_TEAM void mask_token(const TokenBatch& batch, int64_t i) {
  const int64_t row = i / batch.length;
  const Draws draws(uint64_t(batch.seed), uint64_t(batch.step ? *batch.step : batch.step_value),
                    uint64_t(batch.samples[row]), Purpose::kTokens, 0);
  const DrawnToken drawn =
      draw_token(batch.rule, draws, uint32_t(i - row * batch.length),
                 static_cast<const Id*>(batch.ids)[i], batch.special && batch.special[i]);
  static_cast<Id*>(batch.inputs)[i] = Id(drawn.input);
  static_cast<Id*>(batch.labels)[i] = Id(drawn.label);
}

// Tokens first, first + stride, ...
FASTSSL_TEAM inline void mask_tokens(const TokenBatch& batch, int64_t first, int64_t stride) {
  for (int64_t i = first; i < batch.batch * batch.length; i += stride) {
    batch.wide ? mask_token<int64_t>(batch, i) : mask_token<int32_t>(batch, i);
  }
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
