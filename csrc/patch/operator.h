// What the operators on patches check and take apart in the same way on every device. Values on a
// GPU are not looked at: that would wait for it.
#pragma once

#include <array>
#include <vector>

#include "common/stable.h"
#include "patch/patch.h"

namespace fastssl {
namespace patch {

constexpr ScalarType kTypes[] = {ScalarType::Double, ScalarType::Float, ScalarType::Half,
                                 ScalarType::BFloat16};

// The type that DTYPES of schema.py has at this index.
inline ScalarType type_at(int64_t index) {
  STD_TORCH_CHECK(0 <= index && index < 4, "no such dtype: ", index);
  return kTypes[index];
}

inline ScalarType compute_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_ids(const Tensor& ids, int64_t batch, int64_t length, const Tensor& like) {
  STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Long && ids.dim() == 2 && ids.size(0) == batch &&
                      ids.size(1) == length && ids.is_contiguous() && ids.device() == like.device(),
                  "a plan must be int64 [B, L], contiguous, where the data is");
}

inline Plan plan_of(const Tensor& shuffle, const Tensor& restore,
                    const std::optional<Tensor>& lengths, int64_t keep, const Tensor& like) {
  STD_TORCH_CHECK(restore.dim() == 2, "a plan must be [B, L]");
  const int64_t batch = restore.size(0), length = restore.size(1);
  check_ids(shuffle, batch, length, like);
  check_ids(restore, batch, length, like);
  STD_TORCH_CHECK(like.size(0) == batch, "a plan must have as many samples as the data");
  STD_TORCH_CHECK(0 <= keep && keep <= length, "keep must be in [0, L]");
  STD_TORCH_CHECK(!lengths || (lengths->scalar_type() == ScalarType::Long && lengths->dim() == 1 &&
                               lengths->size(0) == batch && lengths->is_contiguous() &&
                               lengths->device() == like.device()),
                  "lengths must be int64 [B], contiguous, where the data is");
  const auto ids = [](const Tensor& x) { return static_cast<const int64_t*>(x.const_data_ptr()); };
  return {ids(shuffle), ids(restore), lengths ? ids(*lengths) : nullptr, batch, length, keep};
}

inline Images images_of(const Tensor& x, const std::vector<int64_t>& patch, int64_t length) {
  const int64_t axes = int64_t(patch.size());
  STD_TORCH_CHECK(1 <= axes && axes <= kAxes && x.dim() == axes + 2,
                  "images must be [B, C, *space] with a patch size for each axis of space");
  Images images{};
  images.data = x.const_data_ptr();
  images.is_uint8 = x.scalar_type() == ScalarType::Byte;
  if (!images.is_uint8) images.dtype = dtype_of(x);
  images.batch = x.size(0);
  images.channels = x.size(1);
  images.batch_stride = x.stride(0);
  images.channel_stride = x.stride(1);
  for (int64_t i = 0; i < kAxes; ++i) {
    const int64_t axis = i - (kAxes - axes);
    images.grid[i] = images.patch[i] = 1;
    if (axis < 0) continue;
    const int64_t size = patch[size_t(axis)];
    STD_TORCH_CHECK(size > 0 && x.size(axis + 2) % size == 0, "patches must divide the images");
    images.grid[i] = x.size(axis + 2) / size;
    images.patch[i] = size;
    images.stride[i] = x.stride(axis + 2);
  }
  STD_TORCH_CHECK(images.channels > 0 && images.length() == length,
                  "a plan must have as many patches as the images");
  return images;
}

// x becomes x * scale + shift, which is (x / 255 - mean) / std for levels.
struct Normalization {
  std::vector<double> scale, shift;

  Normalization(const Images& images, const std::vector<double>& mean,
                const std::vector<double>& std) {
    STD_TORCH_CHECK(int64_t(mean.size()) == images.channels && std.size() == mean.size(),
                    "mean and std must have a number for each channel");
    for (size_t c = 0; c < mean.size(); ++c) {
      scale.push_back(1 / ((images.is_uint8 ? 255.0 : 1.0) * std[c]));
      shift.push_back(-mean[c] / std[c]);
    }
  }
};

inline Order order_at(int64_t index) {
  STD_TORCH_CHECK(index == 0 || index == 1, "no such order: ", index);
  return Order(index);
}

// Of the compute type of `type`, contiguous, of `numbers` elements; or absent.
inline const void* addend(const std::optional<Tensor>& x, ScalarType type, int64_t numbers,
                          const Tensor& like) {
  if (!x) return nullptr;
  STD_TORCH_CHECK(x->scalar_type() == compute_type(type) && x->is_contiguous() &&
                      x->numel() == numbers && x->device() == like.device(),
                  "token and positions must be contiguous, of the compute type, where the data is");
  return x->const_data_ptr();
}

// Rows [B, rows, D] of `x` under a plan; `out` is still to be set.
inline TokensJob tokens_of(const Tensor& x, const Plan& plan, int64_t prefix, int64_t tokens,
                           ScalarType type) {
  STD_TORCH_CHECK(x.dim() == 3 && prefix >= 0 && x.size(1) == prefix + tokens,
                  "tokens must be [B, prefix + L, D] or [B, prefix + K, D]");
  STD_TORCH_CHECK(type == x.scalar_type() ||
                      (type == ScalarType::Float && x.scalar_type() != ScalarType::Double) ||
                      (type == ScalarType::Double && x.scalar_type() == ScalarType::Double),
                  "the result must have the type of the tokens, or be float32");
  TokensJob job{};
  job.plan = plan;
  job.x = x.const_data_ptr();
  job.x_dtype = dtype_of(x);
  for (int i = 0; i < 3; ++i) job.x_stride[i] = x.stride(i);
  job.width = x.size(2);
  job.prefix = prefix;
  job.dtype = dtype_of(type);
  return job;
}

// All of a loss but what it writes; `count` is that of plans whose lengths do not vary.
inline LossJob loss_of(const Images& images, const Plan& plan, const Normalization& norm,
                       const Tensor& pred, bool norm_pix, int64_t kind, int64_t statistics,
                       int64_t order, double upstream) {
  const int64_t removed = plan.length - plan.keep;
  STD_TORCH_CHECK(
      pred.dim() == 3 && pred.size(0) == plan.batch && pred.size(2) == images.width() &&
          (pred.size(1) == plan.length || (plan.lengths == nullptr && pred.size(1) == removed)),
      "pred must be [B, L, P], or [B, L - K, P] where K is the same for all samples");
  STD_TORCH_CHECK(0 <= kind && kind < 4 && 0 <= statistics && statistics < 2,
                  "no such kind or statistics");
  LossJob job{};
  job.images = images;
  job.plan = plan;
  job.scale = norm.scale.data();
  job.shift = norm.shift.data();
  job.order = order_at(order);
  job.norm_pix = norm_pix;
  job.kind = Kind(kind);
  job.statistics = Statistics(statistics);
  job.pred = pred.const_data_ptr();
  job.dtype = dtype_of(pred);
  for (int i = 0; i < 3; ++i) job.pred_stride[i] = pred.stride(i);
  job.removed_only = pred.size(1) != plan.length;
  job.count = double(plan.batch * removed);
  job.upstream = upstream;
  return job;
}

// Room for the gradient of `pred`, which the job will write; empty where none is wanted.
inline Tensor new_gradient(const Tensor& pred, LossJob* job) {
  if (job->upstream == 0) return torch::stable::new_empty(pred, {0});
  Tensor gradient = torch::stable::new_empty(pred, pred.sizes());
  job->gradient = gradient.mutable_data_ptr();
  return gradient;
}

}  // namespace patch
}  // namespace fastssl
