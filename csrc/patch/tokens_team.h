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
  RowDivisor divisor;  // by samples, or by rows of each
  // Rows of one position follow each other, so that it comes from the cache nearby: positions in
  // the compute type are more than all that tokens of bfloat16 read and write.
  bool samples_first;
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

// load(e) is a pack of what goes to `to` from element `e` on, plus `pos` where that is not null.
template <int kCount, class Team, class Out, class Load>
FASTSSL_TEAM void write_token(const Team& team, int32_t width, const Compute<Out>* pos, Out* to,
                              const Load& load) {
  using C = Compute<Out>;
  constexpr int kAhead = kCount == 1 ? 4 : 2;
  for (int32_t i = team.rank; i < width / kCount; i += kAhead * team.size) {
    decltype(load(0)) x[kAhead];
    Raw<C, kCount> add[kAhead];
    FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
      const int32_t e = (i + a * team.size) * kCount;
      x[a] = {};
      add[a] = {};
      if (e >= width) continue;
      if (pos) add[a] = load_raw<kCount>(pos + e);
      x[a] = load(e);
    }
    FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
      const int32_t e = (i + a * team.size) * kCount;
      if (e >= width) return;
      Pack<Out, kCount> pack;
      FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
        C number = C(number_at(x[a], k));
        if (pos) number += add[a][k];
        narrow(number, &pack.x[k]);
      }
      store_pack(to + e, pack);
    }
  }
}

// Row `n` of those that `divisor` counts.
template <class In, class Out, int kCount, class Team, class Fail>
FASTSSL_TEAM void token_row(const Team& team, const TokensBatch& batch, int64_t n,
                            const Fail& fail) {
  using C = Compute<Out>;
  const int64_t some = batch.divisor.sample(n), other = n - some * batch.divisor.each;
  const int64_t b = batch.samples_first ? other : some, j = batch.samples_first ? some : other;
  int64_t source, position;
  find_row(batch, b, j, &source, &position, fail);
  const In* from = nullptr;
  if (source >= 0) {
    from =
        static_cast<const In*>(batch.x.data) + b * batch.x.stride[0] + source * batch.x.stride[1];
  }
  const C* pos = nullptr;
  if (position >= 0 && batch.pos) pos = static_cast<const C*>(batch.pos) + position * batch.width;
  Out* to = static_cast<Out*>(batch.out) + (b * batch.rows_each() + j) * batch.width;
  if (from) {
    const int64_t stride = kCount == 1 ? batch.x.stride[2] : 1;
    write_token<kCount>(team, int32_t(batch.width), pos, to,
                        [&](int32_t e) { return load_raw<kCount>(from + e * stride); });
  } else {
    const C* token = batch.restores ? static_cast<const C*>(batch.token) : nullptr;
    write_token<kCount>(team, int32_t(batch.width), pos, to, [&](int32_t e) {
      return token ? load_raw<kCount>(token + e) : Raw<C, kCount>{};
    });
  }
}

template <class In, class Out, int kCount, class Team, class Fail>
FASTSSL_TEAM void token_rows(const Team& team, const TokensBatch& batch, int64_t first,
                             int64_t stride, const Fail& fail) {
  for (int64_t row = first; row < batch.rows(); row += stride) {
    token_row<In, Out, kCount>(team, batch, row, fail);
  }
}

// 8 bytes of a row for each thread: more warps then, each with many rows on their way.
template <class T>
constexpr int kSumPackOf = sizeof(T) == 8 ? 1 : 8 / int(sizeof(T));

// The removed rows of chunk `chunk`, each thread with columns of its own.
template <class In, int kCount, class Team>
FASTSSL_TEAM void sum_chunk(const Team& team, const SumBatch& batch, int64_t chunk) {
  const DevicePlan& plan = batch.plan;
  const int64_t begin = chunk * batch.chunk;
  const int64_t end = least(begin + batch.chunk, plan.batch * plan.length);
  constexpr int kAhead = 8;
  team.for_each(batch.width / kCount, [&](int64_t i) {
    double sum[kCount] = {};
    int64_t b = begin / plan.length;
    for (int64_t row = begin; row < end; ++b) {  // the rows of a sample
      const int32_t count = int32_t(least(end, (b + 1) * plan.length) - row);
      const int64_t* places = plan.restore + row;
      const int64_t kept = plan.kept(b), stride = batch.x.stride[1];
      const In* from = static_cast<const In*>(batch.x.data) + b * batch.x.stride[0] +
                       (batch.prefix + row - b * plan.length) * stride +
                       i * (kCount == 1 ? batch.x.stride[2] : kCount);
      int64_t place[kAhead];
      const auto look = [&](int32_t first) {
        FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
          place[a] = first + a < count ? places[first + a] : -1;
        }
      };
      look(0);
      FASTSSL_ROLLED for (int32_t first = 0; first < count; first += kAhead) {
        Raw<In, kCount> x[kAhead];
        uint32_t taken = 0;
        FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
          x[a] = {};
          if (place[a] >= kept) {
            x[a] = load_raw<kCount>(from);
            taken |= 1u << a;
          }
          from += stride;
        }
        look(first + kAhead);  // while those are on their way
        FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
          if ((taken >> a & 1) == 0) continue;
          FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) sum[k] += double(number_at(x[a], k));
        }
      }
      row += count;
    }
    FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
      batch.partial[chunk * batch.width + i * kCount + k] = sum[k];
    }
  });
}

constexpr int32_t kTileColumns = 8;

// Adds the chunks of 8 columns from `tile` * 8 on. `scratch` has a number for each thread, of which
// there are a multiple of 8.
template <class C, class Team>
FASTSSL_TEAM void sum_chunks(const Team& team, const SumBatch& batch, int64_t tile,
                             double* scratch) {
  const int64_t column = tile * kTileColumns + team.rank % kTileColumns;
  const int32_t groups = team.size / kTileColumns;
  double sum = 0;
  if (column < batch.width) {
    constexpr int kAhead = 8;
    for (int64_t c = team.rank / kTileColumns; c < batch.chunks; c += kAhead * groups) {
      double some[kAhead];
      FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
        const int64_t at = c + a * groups;
        some[a] = at < batch.chunks ? batch.partial[at * batch.width + column] : 0;
      }
      FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) sum += some[a];
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
  const int64_t packs = batch.count / kCount;
  constexpr int kAhead = 4;
  for (int64_t i = first; i < packs; i += kAhead * stride) {
    Raw<T, kCount> from[kAhead];
    FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
      from[a] = {};
      if (i + a * stride < packs) from[a] = load_raw<kCount>(x + (i + a * stride) * kCount);
    }
    FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
      if (i + a * stride >= packs) return;
      Pack<T, kCount> pack;
      FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
        narrow(C(number_at(from[a], k)) * by, &pack.x[k]);
      }
      store_pack(x + (i + a * stride) * kCount, pack);
    }
  }
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
