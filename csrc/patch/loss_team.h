// The masked loss and its gradient: a team takes one row of the prediction after another, with the
// target of its patch in scratch memory. Sums are made in a fixed order.
#pragma once

#include "patch/element_team.h"
#include "patch/patch.h"

namespace fastssl {
namespace patch {

// Teams of a launch, at most: few enough for their sums to be added up quickly, enough to fill any
// GPU. The same on all, so that bits do not depend on it.
constexpr int64_t kMostLossTeams = 8192;

// What levels_team.h needs of a launch: numbers that every row would find anew.
constexpr int kColors = 3;
constexpr int kLevelPixels = 256;  // of a patch, at most: sums of squares times them fit 32 bits
constexpr int kLevelScratch = 24;  // floats, beside the target
struct LevelChannel {
  double scale, shift, inverse, square;  // inverse: 1 / scale
};
struct LevelRule {
  bool applies;
  Divisor rows;                             // of a sample
  int32_t pred_stride[2], image_stride[4];  // sample and row; sample and patches along each axis
  double area, inverse_area, inverse_area_less, width, inverse_width_less;  // less: of one less
  double between[kColors];  // what a distance of means counts, of channel c from those before it
  LevelChannel channel[kColors];
};

struct LossBatch {
  Pixels pixels;
  DevicePlan plan;
  Rows pred;        // [batch, rows_each, width]
  void* gradient;   // contiguous; null where none is wanted
  double* partial;  // [teams]
  void* loss;       // of the compute type
  double upstream;  // the gradient is that of the loss times this
  int64_t teams;
  bool removed_only, norm_pix, channels_last;
  Kind kind;
  Statistics statistics;
  LevelRule levels;

  FASTSSL_HD int64_t rows_each() const { return plan.length - (removed_only ? plan.keep : 0); }
  FASTSSL_HD int64_t rows() const { return plan.batch * rows_each(); }
  // Elements of the compute type that a team works in.
  FASTSSL_HD int64_t scratch() const {
    if (levels.applies) return pixels.width() + kLevelScratch;
    return int64_t(pixels.width()) * (kind == Kind::kCosine ? 2 : 1);
  }
};

namespace {

// How many patches of the batch are removed, but 1 where none is.
template <class Team>
FASTSSL_TEAM double removed_count(const Team& team, const DevicePlan& plan) {
  int64_t count = plan.batch * (plan.length - plan.keep);
  if (plan.lengths) {
    int64_t kept = 0;
    team.for_each(plan.batch, [&](int64_t b) { kept += plan.kept(b); });
    count = plan.batch * plan.length - team.sum(kept);
  }
  return count > 0 ? double(count) : 1.0;
}

// What turns the pixels of a channel into the target: (x - centre) * scale + shift.
template <class C>
struct Affine {
  C centre, scale, shift;
};

// Mean and sum of squared distances from it of the pixels of one channel.
struct Moments {
  double mean, squares;
};

// The target of one patch. A thread has the same pixels in every loop over them.
template <class C, class Team>
struct Target {
  const Team& team;
  const LossBatch& batch;
  C* target;  // [width], in the order of the prediction

  FASTSSL_TEAM int32_t place(int32_t c, int32_t pixel) const {
    const Pixels& p = batch.pixels;
    return batch.channels_last ? pixel * p.channels + c : c * p.area() + pixel;
  }

  // Loads a channel of the patch that begins at `from`.
  template <class Source>
  FASTSSL_TEAM Moments load(const Source* from, int32_t c) const {
    const Pixels& p = batch.pixels;
    const int32_t area = p.area(), size = team.size;
    const int32_t radix[2] = {p.patch[2], p.patch[1]};
    const int32_t stride[3] = {p.stride[2], p.stride[1], p.stride[0]};
    Odometer<3> at, step;
    at.set(team.rank, radix, stride);
    step.set(size, radix, stride);
    int64_t levels = 0, level_squares = 0;
    double sum = 0;
    constexpr int kAhead = 4;
    for (int32_t j = team.rank; j < area; j += kAhead * size) {
      Source x[kAhead];
      FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
        x[a] = j + a * size < area ? from[at.offset] : Source{};
        at.add(step, radix, stride);
      }
      uint32_t some = 0, squares = 0;  // of a few levels
      FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
        if (j + a * size >= area) continue;
        target[place(c, j + a * size)] = C(widened(x[a]));
        if constexpr (sizeof(Source) == 1) {
          some += x[a];
          squares += uint32_t(x[a]) * x[a];
        } else {
          sum += double(C(widened(x[a])));
        }
      }
      levels += some;
      level_squares += squares;
    }
    if (!batch.norm_pix) return {};
    if constexpr (sizeof(Source) == 1) {
      const int64_t s = team.sum(levels), squares = team.sum(level_squares);
      return {double(s) / area, double(squares * area - s * s) / area};
    }
    const double mean = team.sum(sum) / area;
    double squares = 0;
    team.for_each(area, [&](int64_t j) {
      const double d = double(target[place(c, int32_t(j))]) - mean;
      squares += d * d;
    });
    return {mean, team.sum(squares)};
  }

  FASTSSL_TEAM void transform(int32_t c, const Affine<C>& f) const {
    team.for_each(batch.pixels.area(), [&](int64_t j) {
      C& x = target[place(c, int32_t(j))];
      x = fused(x - f.centre, f.scale, f.shift);
    });
  }

  // Normalises a channel: pixels x become (x * scale + shift - mean) * factor.
  FASTSSL_TEAM void normalize(int32_t c, double mean, double factor) const {
    const double scale = batch.pixels.scale_of(c), shift = batch.pixels.shift_of(c);
    // Near the mean: differences from it have small rounding errors.
    const C centre = C((mean - shift) / scale);
    transform(c, {centre, C(scale * factor), C((double(centre) * scale + shift - mean) * factor)});
  }

  template <class Source>
  FASTSSL_COLD void make(int64_t begin) const {
    const Pixels& p = batch.pixels;
    const Source* from = static_cast<const Source*>(p.data) + begin;
    const double n = p.area();
    double mean = 0, squares = 0;  // of the channels so far
    for (int32_t c = 0; c < p.channels; ++c) {
      const Moments m = load(from + int64_t(c) * p.channel_stride, c);
      const double scale = p.scale_of(c), shift = p.shift_of(c);
      if (!batch.norm_pix) {
        transform(c, {C(0), C(scale), C(shift)});
        continue;
      }
      const double own_mean = m.mean * scale + shift, own_squares = m.squares * (scale * scale);
      if (batch.statistics == Statistics::kPatchChannel) {
        normalize(c, own_mean, 1 / (square_root(own_squares / (n - 1)) + 1e-6));
        continue;
      }
      const double d = own_mean - mean;
      mean += d / (c + 1);
      squares += own_squares + d * d * (n * c / (c + 1));
    }
    if (!batch.norm_pix || batch.statistics == Statistics::kPatchChannel) return;
    const double factor = 1 / square_root(squares / (p.width() - 1) + 1e-6);
    for (int32_t c = 0; c < p.channels; ++c) normalize(c, mean, factor);
  }

  // Of the patch whose first pixel is at `begin`.
  FASTSSL_TEAM void make(int64_t begin) const {
    switch (batch.pixels.source) {
      case kUint8Source:
        return make<uint8_t>(begin);
      case int32_t(DType::kFloat64):
        return make<double>(begin);
      case int32_t(DType::kFloat32):
        return make<float>(begin);
      case int32_t(DType::kFloat16):
        return make<Half>(begin);
      default:
        return make<BFloat>(begin);
    }
  }
};

// Of the difference of a prediction and its target; `slope` becomes the derivative.
template <class C>
FASTSSL_TEAM C distance(Kind kind, C d, C* slope) {
  if (kind == Kind::kMse) {
    *slope = d + d;
    return d * d;
  }
  const C size = d < 0 ? -d : d;
  if (kind == Kind::kSmoothL1 && size < 1) {
    *slope = d;
    return C(0.5) * d * d;
  }
  *slope = d > 0 ? C(1) : d < 0 ? C(-1) : d;  // zero and NaN stay
  return kind == Kind::kSmoothL1 ? size - C(0.5) : size;
}

template <class T, int kCount>
struct PredRow {
  const T* from;
  int64_t stride;
  T* gradient;

  FASTSSL_TEAM Raw<T, kCount> load(int64_t i) const {
    return load_raw<kCount>(from + i * (kCount == 1 ? stride : kCount));
  }
};

// A thread's part of the sum over the row of its distances.
template <class T, int kCount, class Team>
FASTSSL_COLD double compare(const Team& team, const LossBatch& batch, const PredRow<T, kCount>& row,
                            const Compute<T>* target, double weight) {
  using C = Compute<T>;
  const C factor = C(weight);
  const int32_t packs = batch.pixels.width() / kCount;
  double total = 0;
  constexpr int kAhead = 2;
  for (int32_t i = team.rank; i < packs; i += kAhead * team.size) {
    Raw<T, kCount> x[kAhead];
    FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
      x[a] = {};
      if (i + a * team.size < packs) x[a] = row.load(i + a * team.size);
    }
    FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
      const int32_t at = i + a * team.size;
      if (at >= packs) continue;
      const auto t = load_pack<kCount>(target + int64_t(at) * kCount);
      Pack<T, kCount> gradient;
      C some = 0;
      FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
        C slope;
        some += distance(batch.kind, C(number_at(x[a], k)) - t.x[k], &slope);
        narrow(slope * factor, &gradient.x[k]);
      }
      total += double(some);
      if (row.gradient) store_pack(row.gradient + int64_t(at) * kCount, gradient);
    }
  }
  return total;
}

// 1 - the cosine of both rows, each norm at least 1e-8; `kept` is where the prediction is kept.
template <class T, int kCount, class Team>
FASTSSL_COLD double compare_angle(const Team& team, const LossBatch& batch,
                                  const PredRow<T, kCount>& row, const Compute<T>* target,
                                  Compute<T>* kept, double weight) {
  using C = Compute<T>;
  constexpr double kLeast = 1e-8;
  const int64_t packs = batch.pixels.width() / kCount;
  double products = 0, preds = 0, targets = 0;
  team.for_each(packs, [&](int64_t i) {
    const auto x = row.load(i);
    const auto t = load_pack<kCount>(target + i * kCount);
    Pack<C, kCount> wide;
    FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
      const C p = wide.x[k] = C(widened(x[k]));
      products += double(p) * double(t.x[k]);
      preds += double(p) * double(p);
      targets += double(t.x[k]) * double(t.x[k]);
    }
    store_pack(kept + i * kCount, wide);
  });
  products = team.sum(products);
  const double norm = square_root(team.sum(preds));
  const double p = greatest(norm, kLeast);
  const double t = greatest(square_root(team.sum(targets)), kLeast);
  const double cosine = products / (p * t);
  if (row.gradient) {
    const C along = norm > 0 ? C(weight * cosine / (p * norm)) : C(0);
    const C across = C(-weight / (p * t));
    team.for_each(packs, [&](int64_t i) {
      const auto x = load_pack<kCount>(kept + i * kCount);
      const auto y = load_pack<kCount>(target + i * kCount);
      Pack<T, kCount> gradient;
      FASTSSL_UNROLL for (int k = 0; k < kCount; ++k) {
        narrow(fused(x.x[k], along, y.x[k] * across), &gradient.x[k]);
      }
      store_pack(row.gradient + i * kCount, gradient);
    });
  }
  return team.rank == 0 ? 1 - cosine : 0;
}

// Rows number, number + teams, ... of the prediction; `scratch` has batch.scratch() elements.
template <class T, int kCount, class Team, class Fail>
FASTSSL_TEAM void loss_rows(const Team& team, const LossBatch& batch, int64_t number,
                            Compute<T>* scratch, const Fail& fail) {
  using C = Compute<T>;
  const DevicePlan& plan = batch.plan;
  const int64_t width = batch.pixels.width(), each = batch.rows_each();
  const Target<C, Team> target{team, batch, scratch};
  const double weight = batch.upstream / removed_count(team, plan);
  double total = 0;
  for (int64_t r = number; r < batch.rows(); r += batch.teams) {
    const int64_t b = r / each, n = r - b * each;
    PredRow<T, kCount> row;
    row.from = static_cast<const T*>(batch.pred.data) + b * batch.pred.stride[0] +
               n * batch.pred.stride[1];
    row.stride = batch.pred.stride[2];
    row.gradient = batch.gradient ? static_cast<T*>(batch.gradient) + r * width : nullptr;
    int64_t l = n;
    if (batch.removed_only) {
      l = plan.shuffle[b * plan.length + plan.keep + n];
      if (uint64_t(l) >= uint64_t(plan.length)) return fail();
    } else if (plan.restore[b * plan.length + n] < plan.kept(b)) {
      if (row.gradient) {
        team.for_each(width / kCount,
                      [&](int64_t i) { store_pack(row.gradient + i * kCount, Pack<T, kCount>{}); });
      }
      continue;
    }
    target.make(batch.pixels.begin(b, l));
    team.sync();
    if (batch.kind == Kind::kCosine) {
      total += compare_angle<T, kCount>(team, batch, row, scratch, scratch + width, weight);
    } else {
      total += compare<T, kCount>(team, batch, row, scratch, weight / width);
    }
    team.sync();
  }
  total = team.sum(total);
  if (team.rank == 0) batch.partial[number] = total;
}

template <class C, class Team>
FASTSSL_TEAM void sum_losses(const Team& team, const LossBatch& batch) {
  const double count = removed_count(team, batch.plan);
  const int32_t width = batch.kind == Kind::kCosine ? 1 : batch.pixels.width();
  double total = 0;
  constexpr int kAhead = 8;
  for (int64_t i = team.rank; i < batch.teams; i += kAhead * team.size) {
    double some[kAhead];
    FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) {
      some[a] = i + a * team.size < batch.teams ? batch.partial[i + a * team.size] : 0;
    }
    FASTSSL_UNROLL for (int a = 0; a < kAhead; ++a) total += some[a];
  }
  total = team.sum(total);
  if (team.rank == 0) *static_cast<C*>(batch.loss) = C(total / (count * width));
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
