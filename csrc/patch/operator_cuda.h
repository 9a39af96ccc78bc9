// Launches of the operators on patches, made from checked arguments: what the CUDA operators and
// the tests on the CPU share.
#pragma once

#include <vector>

#include "patch/launch_cuda.h"
#include "patch/operator.h"

namespace fastssl {
namespace patch {
namespace {

constexpr int64_t kMostWidth = 1 << 23;  // of a patch: indices fit 32 bits, sums of squares 64

inline DevicePlan device_plan(const Plan& plan) {
  return {plan.shuffle, plan.restore, plan.lengths, plan.batch, plan.length, plan.keep};
}

// Whether rows of `width` elements, `row` and `other` elements apart, are whole packs of `count`
// elements of `size` bytes, aligned to up to 16 bytes.
inline bool is_packed(const void* data, int64_t size, int64_t count, int64_t width,
                      std::initializer_list<int64_t> strides) {
  const int64_t bytes = std::min<int64_t>(16, size * count);
  bool packed = width % count == 0 && reinterpret_cast<uintptr_t>(data) % uintptr_t(bytes) == 0;
  for (const int64_t stride : strides) packed = packed && stride * size % bytes == 0;
  return packed;
}

inline int64_t size_of(DType type) {
  return type == DType::kFloat64 ? 8 : type == DType::kFloat32 ? 4 : 2;
}
inline int64_t count_of(DType type) { return 16 / size_of(type); }
inline int64_t sum_count_of(DType type) { return type == DType::kFloat64 ? 1 : count_of(type) / 2; }
inline int64_t compute_size(DType type) { return type == DType::kFloat64 ? 8 : 4; }

// Offsets inside a patch fit 32 bits.
inline void check_span(int64_t elements) {
  STD_TORCH_CHECK(elements < int64_t(1) << 31,
                  "a patch must lie within 2^31 elements of the images; make them contiguous");
}
// Of an axis that `check_span` has seen, or that is one element long: its stride has no use.
inline int32_t narrowed(int64_t stride) { return stride < int64_t(1) << 31 ? int32_t(stride) : 0; }

// `table` is where `norm` is on the device, or null where channels are few.
inline Pixels pixels_of(const Images& images, const Normalization& norm, const double* table) {
  STD_TORCH_CHECK(images.width() <= kMostWidth, "a patch must have at most ", kMostWidth,
                  " numbers");
  STD_TORCH_CHECK(images.length() < int64_t(1) << 31, "images must have fewer than 2^31 patches");
  int64_t span = (images.channels - 1) * images.channel_stride;
  for (int i = 0; i < kAxes; ++i) span += (images.patch[i] - 1) * images.stride[i];
  check_span(span);
  Pixels p{};
  p.data = images.data;
  p.source = images.is_uint8 ? kUint8Source : int32_t(images.dtype);
  p.channels = int32_t(images.channels);
  p.batch_stride = images.batch_stride;
  p.channel_stride = narrowed(images.channel_stride);
  for (int i = 0; i < kAxes; ++i) {
    p.stride[i] = narrowed(images.stride[i]);
    p.apart[i] = images.patch[i] * images.stride[i];
    p.grid[i] = int32_t(images.grid[i]);
    p.patch[i] = int32_t(images.patch[i]);
  }
  p.grid_rows = divisor_of(std::max(p.grid[1], 1));
  p.grid_columns = divisor_of(std::max(p.grid[2], 1));
  p.table = table;
  for (int c = 0; c < p.channels && c < kChannelsByValue; ++c) {
    p.scale[c] = norm.scale[size_t(c)];
    p.shift[c] = norm.shift[size_t(c)];
    p.scale32[c] = float(p.scale[c]);
    p.shift32[c] = float(p.shift[c]);
  }
  return p;
}

inline void check_tiles(const Tiles& t) {
  check_span((t.height - 1) * t.stride[2] + (t.width - 1) * t.stride[3]);
}

// The numbers of `norm` as the device's table has them.
inline std::vector<double> table_of(const Normalization& norm) {
  std::vector<double> table = norm.scale;
  table.insert(table.end(), norm.shift.begin(), norm.shift.end());
  return table;
}

inline GatherBatch gather_batch(const Plan& plan, const Pixels& pixels, Order order, DType type,
                                void* out) {
  GatherBatch batch{};
  batch.pixels = pixels;
  batch.plan = device_plan(plan);
  batch.keeps = row_divisor(plan.keep);
  batch.channels_last = order == Order::kPqc;
  const int32_t sizes[3] = {pixels.patch[2], pixels.patch[1], pixels.patch[0]};
  const int32_t strides[3] = {pixels.stride[2], pixels.stride[1], pixels.stride[0]};
  batch.stride[batch.channels_last ? 0 : 3] = pixels.channel_stride;
  if (batch.channels_last) batch.radix[0] = pixels.channels;
  for (int i = 0; i < 3; ++i) {
    const int digit = i + (batch.channels_last ? 1 : 0);
    batch.stride[digit] = strides[i];
    if (digit < 3) batch.radix[digit] = sizes[i];
  }
  for (int i = 0; i < 3; ++i) batch.divisor[i] = divisor_of(std::max(batch.radix[i], 1));
  batch.out = out;
  const int64_t size = pixels.source == kUint8Source ? 1 : size_of(DType(pixels.source));
  batch.packed = !batch.channels_last && strides[0] == 1 &&
                 is_packed(pixels.data, size, count_of(type), sizes[0],
                           {pixels.batch_stride, pixels.apart[0], pixels.apart[1], sizes[0],
                            pixels.channel_stride, strides[1], strides[2]});
  return batch;
}

inline bool gather_is_packed(const GatherBatch& batch, DType type) {
  return is_packed(batch.out, size_of(type), count_of(type), batch.pixels.width(), {});
}

inline TokensBatch tokens_batch(const TokensJob& job, bool restores) {
  STD_TORCH_CHECK(job.width < int64_t(1) << 30, "a token must have fewer than 2^30 numbers");
  TokensBatch batch{};
  batch.plan = device_plan(job.plan);
  batch.x = {job.x, {job.x_stride[0], job.x_stride[1], job.x_stride[2]}};
  batch.token = job.token;
  batch.pos = job.pos;
  batch.width = job.width;
  batch.prefix = job.prefix;
  batch.restores = restores;
  batch.samples_first = restores && job.pos;
  batch.divisor = row_divisor(batch.samples_first ? job.plan.batch : batch.rows_each());
  batch.out = job.out;
  return batch;
}

inline bool tokens_are_packed(const TokensJob& job) {
  const int64_t count = count_of(job.dtype), size = compute_size(job.dtype);
  return job.x_stride[2] == 1 &&
         is_packed(job.x, size_of(job.x_dtype), count, job.width,
                   {job.x_stride[0], job.x_stride[1]}) &&
         is_packed(job.token, size, count, job.width, {}) &&
         is_packed(job.pos, size, count, job.width, {}) &&
         is_packed(job.out, size_of(job.dtype), count, job.width, {});
}

// `partial` and `out` are still to be set.
inline SumBatch sum_batch(const TokensJob& job) {
  constexpr int64_t kMostChunks = 512, kLeastRows = 16;
  SumBatch batch{};
  batch.plan = device_plan(job.plan);
  batch.x = {job.x, {job.x_stride[0], job.x_stride[1], job.x_stride[2]}};
  batch.width = job.width;
  batch.prefix = job.prefix;
  const int64_t rows = job.plan.batch * job.plan.length;
  batch.chunk = std::max(kLeastRows, (rows + kMostChunks - 1) / kMostChunks);
  batch.chunks = (rows + batch.chunk - 1) / batch.chunk;
  return batch;
}

inline bool sum_is_packed(const TokensJob& job) {
  return job.x_stride[2] == 1 && is_packed(job.x, size_of(job.x_dtype), sum_count_of(job.x_dtype),
                                           job.width, {job.x_stride[0], job.x_stride[1]});
}

inline bool loss_is_packed(const LossJob& job) {
  const int64_t size = size_of(job.dtype), count = count_of(job.dtype), width = job.images.width();
  return job.pred_stride[2] == 1 &&
         is_packed(job.pred, size, count, width, {job.pred_stride[0], job.pred_stride[1]}) &&
         is_packed(job.gradient, size, count, width, {});
}

// Whether levels_team.h computes it, and with what.
inline LevelRule level_rule(const LossJob& job, const Pixels& p) {
  LevelRule rule{};
  const int64_t strides[] = {job.pred_stride[0], job.pred_stride[1], p.batch_stride,
                             p.apart[0],         p.apart[1],         p.apart[2]};
  bool strides_fit = true;
  for (const int64_t stride : strides) strides_fit &= stride == int32_t(stride);
  const int64_t rows = job.plan.batch * (job.plan.length - (job.removed_only ? job.plan.keep : 0));
  rule.applies = p.source == kUint8Source && p.channels == kColors && p.area() <= kLevelPixels &&
                 job.kind != Kind::kCosine && job.dtype != DType::kFloat64 && loss_is_packed(job) &&
                 0 < rows && rows + kMostLossTeams < int64_t(1) << 31 && strides_fit &&
                 p.stride[2] == 1 &&
                 is_packed(p.data, 1, 8, p.patch[2],
                           {p.batch_stride, p.apart[0], p.apart[1], p.apart[2], p.channel_stride,
                            p.stride[0], p.stride[1]});
  if (!rule.applies) return rule;
  rule.rows = divisor_of(int32_t(rows / job.plan.batch));
  for (int i = 0; i < 2; ++i) rule.pred_stride[i] = int32_t(strides[i]);
  for (int i = 0; i < 4; ++i) rule.image_stride[i] = int32_t(strides[2 + i]);
  rule.area = p.area();
  rule.width = p.width();
  rule.inverse_area = 1 / rule.area;
  rule.inverse_area_less = 1 / (rule.area - 1);
  rule.inverse_width_less = 1 / (rule.width - 1);
  for (int c = 0; c < kColors; ++c) {
    rule.between[c] = rule.area * c / (c + 1);
    rule.channel[c] = {p.scale[c], p.shift[c], 1 / p.scale[c], p.scale[c] * p.scale[c]};
  }
  return rule;
}

// `partial` and `loss` are still to be set.
inline LossBatch loss_batch(const LossJob& job, const Pixels& pixels) {
  LossBatch batch{};
  batch.pixels = pixels;
  batch.plan = device_plan(job.plan);
  batch.pred = {job.pred, {job.pred_stride[0], job.pred_stride[1], job.pred_stride[2]}};
  batch.gradient = job.gradient;
  batch.upstream = job.upstream;
  batch.removed_only = job.removed_only;
  batch.norm_pix = job.norm_pix;
  batch.channels_last = job.order == Order::kPqc;
  batch.kind = job.kind;
  batch.statistics = job.statistics;
  batch.levels = level_rule(job, pixels);
  batch.teams = loss_teams(batch, compute_size(job.dtype));
  return batch;
}

inline TokenBatch token_batch(const Tensor& ids, const std::optional<Tensor>& special,
                              const Tensor& sample_ids, const std::optional<Tensor>& step,
                              int64_t step_value, int64_t seed, const TokenRule& rule,
                              const Tensor& inputs, const Tensor& labels) {
  TokenBatch batch{};
  batch.rule = rule;
  batch.ids = ids.const_data_ptr();
  batch.special = special ? static_cast<const bool*>(special->const_data_ptr()) : nullptr;
  batch.samples = static_cast<const int64_t*>(sample_ids.const_data_ptr());
  batch.step = step ? static_cast<const int64_t*>(step->const_data_ptr()) : nullptr;
  batch.step_value = step_value;
  batch.seed = seed;
  batch.batch = ids.size(0);
  batch.length = ids.size(1);
  batch.wide = ids.scalar_type() == ScalarType::Long;
  batch.inputs = inputs.mutable_data_ptr();
  batch.labels = labels.mutable_data_ptr();
  return batch;
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
