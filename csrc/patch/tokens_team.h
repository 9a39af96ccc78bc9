// Tokens to visible tokens and back, their backward sums, and what an upstream gradient scales.
#pragma once

#include "patch/element_team.h"

namespace fastssl {
namespace patch {

// out[row] = x[source of row], or `token`, or zeros; plus pos.
struct TokensBatch {
  DevicePlan plan;
  Rows x;                   // [batch, prefix + L or K, width]
  const void *token, *pos;  // in the compute type; may be null
  int64_t width, prefix;
  bool restores;  // else gathers
  void* out;      // [batch, prefix + (restores ? L : K), width], contiguous

  FASTSSL_HD int64_t rows_each() const { return prefix + (restores ? plan.length : plan.keep); }
  FASTSSL_HD int64_t rows() const { return plan.batch * rows_each(); }
};

// The sum over removed rows, in two stages: chunks of rows, then their sums.
struct SumBatch {
  DevicePlan plan;
  Rows x;  // [batch, prefix + L, width]
  int64_t width, prefix, chunk, chunks;
  double* partial;  // [chunks, width]
  void* out;        // [width], of the compute type
};

struct ScaleBatch {
  void* x;
  const void* by;
  DType by_type;
  int64_t count;
};

namespace {

// Where row `j` of sample `b` comes from, and its position: -1 for nothing.
template <class Fail>
FASTSSL_TEAM void find_row(const TokensBatch& batch, int64_t b, int64_t j, int64_t* source,
                           int64_t* position, const Fail& fail) {
  const DevicePlan& plan = batch.plan;
  *source = *position = j < batch.prefix || batch.restores ? j : -1;
  if (j < batch.prefix) return;
  const int64_t n = j - batch.prefix;
  if (batch.restores) {
    const int64_t place = plan.restore[b * plan.length + n];
    if (uint64_t(place) >= uint64_t(plan.length)) fail();
    *source = 0 <= place && place < plan.kept(b) ? batch.prefix + place : -1;
  } else if (n < plan.kept(b)) {
    const int64_t l = plan.shuffle[b * plan.length + n];
    if (uint64_t(l) >= uint64_t(plan.length)) {
      fail();
      return;
    }
    *source = *position = batch.prefix + l;
  }
}

template <class In, class Out, int kCount, class Team, class Fail>
FASTSSL_TEAM void token_row(const Team& team, const TokensBatch& batch, int64_t row,
                            const Fail& fail) {
  using C = Compute<Out>;
  const int64_t each = batch.rows_each(), b = row / each;
  int64_t source, position;
  find_row(batch, b, row - b * each, &source, &position, fail);
  const In* from = nullptr;
  if (source >= 0) {
    from =
        static_cast<const In*>(batch.x.data) + b * batch.x.stride[0] + source * batch.x.stride[1];
  }
  const C* token = source < 0 && batch.restores ? static_cast<const C*>(batch.token) : nullptr;
  const C* pos = nullptr;
  if (position >= 0 && batch.pos) pos = static_cast<const C*>(batch.pos) + position * batch.width;
  Out* to = static_cast<Out*>(batch.out) + row * batch.width;
  const int64_t packs = batch.width / kCount;
  constexpr int kAhead = 4;
  for (int64_t i = team.rank; i < packs; i += kAhead * team.size) {
    Pack<C, kCount> x[kAhead];
    FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
      const int64_t e = (i + a * team.size) * kCount;
      x[a] = {};
      if (e >= batch.width) continue;
      if (from) {
        const auto pack = kCount == 1 ? load_pack<kCount>(from + e * batch.x.stride[2], 1)
                                      : load_pack<kCount>(from + e);
        FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) x[a].x[k] = C(widened(pack.x[k]));
      } else if (token) {
        x[a] = load_pack<kCount>(token + e);
      }
    }
    FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
      const int64_t e = (i + a * team.size) * kCount;
      if (e >= batch.width) continue;
      if (pos) {
        const auto add = load_pack<kCount>(pos + e);
        FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) x[a].x[k] += add.x[k];
      }
      Pack<Out, kCount> pack;
      FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) narrow(x[a].x[k], &pack.x[k]);
      store_pack(to + e, pack);
    }
  }
}

template <class In, class Out, int kCount, class Team, class Fail>
FASTSSL_TEAM void token_rows(const Team& team, const TokensBatch& batch, int64_t first,
                             int64_t stride, const Fail& fail) {
  for (int64_t row = first; row < batch.rows(); row += stride) {
    token_row<In, Out, kCount>(team, batch, row, fail);
  }
}

// The removed rows of chunk `chunk`, each thread with columns of its own.
template <class In, int kCount, class Team>
FASTSSL_TEAM void sum_chunk(const Team& team, const SumBatch& batch, int64_t chunk) {
  const DevicePlan& plan = batch.plan;
  const int64_t begin = chunk * batch.chunk;
  const int64_t end = least(begin + batch.chunk, plan.batch * plan.length);
  constexpr int kAhead = 4;
  team.for_each(batch.width / kCount, [&](int64_t i) {
    double sum[kCount] = {};
    for (int64_t first = begin; first < end; first += kAhead) {
      Pack<In, kCount> x[kAhead];
      FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
        const int64_t row = first + a;
        x[a] = {};
        if (row >= end) continue;
        const int64_t b = row / plan.length, l = row - b * plan.length;
        if (plan.restore[row] < plan.kept(b)) continue;
        const In* from = static_cast<const In*>(batch.x.data) + b * batch.x.stride[0] +
                         (batch.prefix + l) * batch.x.stride[1];
        x[a] = kCount == 1 ? load_pack<kCount>(from + i * batch.x.stride[2], 1)
                           : load_pack<kCount>(from + i * kCount);
      }
      FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
        FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) sum[k] += double(widened(x[a].x[k]));
      }
    }
    FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
      batch.partial[chunk * batch.width + i * kCount + k] = sum[k];
    }
  });
}

constexpr int32_t kTileColumns = 32;

// Adds the chunks of 32 columns from `tile` * 32 on. `scratch` has a number for each thread, of
// which there are a multiple of 32.
template <class C, class Team>
FASTSSL_TEAM void sum_chunks(const Team& team, const SumBatch& batch, int64_t tile,
                             double* scratch) {
  const int64_t column = tile * kTileColumns + team.rank % kTileColumns;
  const int32_t groups = team.size / kTileColumns;
  double sum = 0;
  if (column < batch.width) {
    for (int64_t c = team.rank / kTileColumns; c < batch.chunks; c += groups) {
      sum += batch.partial[c * batch.width + column];
    }
  }
  scratch[team.rank] = sum;
  team.sync();
  if (team.rank >= kTileColumns || column >= batch.width) return;
  double total = 0;
  for (int32_t g = 0; g < groups; ++g) total += scratch[g * kTileColumns + team.rank];
  static_cast<C*>(batch.out)[column] = C(total);
}

template <class C>
FASTSSL_TEAM C value_at(const void* x, DType type) {
  switch (type) {
    case DType::kFloat64:
      return C(*static_cast<const double*>(x));
    case DType::kFloat32:
      return C(*static_cast<const float*>(x));
    case DType::kFloat16:
      return C(widened(*static_cast<const Half*>(x)));
    default:
      return C(widened(*static_cast<const BFloat*>(x)));
  }
}

// Multiplies packs first, first + stride, ... unless by 1.
template <class T, int kCount>
FASTSSL_TEAM void scale_packs(const ScaleBatch& batch, int64_t first, int64_t stride) {
  using C = Compute<T>;
  const C by = value_at<C>(batch.by, batch.by_type);
  if (by == C(1)) return;
  T* x = static_cast<T*>(batch.x);
  for (int64_t i = first; i < batch.count / kCount; i += stride) {
    auto pack = load_pack<kCount>(x + i * kCount);
    FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) narrow(C(widened(pack.x[k])) * by, &pack.x[k]);
    store_pack(x + i * kCount, pack);
  }
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
