// What patch_tiles and patch_mask_tokens check and take apart in the same way on every device.
#pragma once

#include <tuple>
#include <vector>

#include "common/stable.h"
#include "patch/tiles.h"
#include "patch/tokens_draw.h"

namespace fastssl {
namespace patch {

// Corners on a GPU are not looked at: the kernel keeps inside the image (tiles.h).
inline std::tuple<Tensor, Tiles> checked_tiles(const Tensor& images, const Tensor& corners,
                                               int64_t height, int64_t width) {
  STD_TORCH_CHECK(images.dim() == 4, "images must be [B, C, H, W]");
  STD_TORCH_CHECK(corners.dim() == 3 && corners.size(0) == images.size(0) && corners.size(2) == 2 &&
                      corners.scalar_type() == ScalarType::Int && corners.is_contiguous() &&
                      corners.device() == images.device(),
                  "corners must be int32 [B, N, 2], contiguous, where the images are");
  STD_TORCH_CHECK(0 < height && height <= images.size(2) && 0 < width && width <= images.size(3),
                  "height and width of a tile must be at least 1 and at most those of the images");
  const int64_t batch = images.size(0), count = corners.size(1), channels = images.size(1);
  Tensor out = torch::stable::new_empty(images, {batch, count, channels, height, width});
  const Tiles tiles{static_cast<const char*>(images.const_data_ptr()),
                    {images.stride(0), images.stride(1), images.stride(2), images.stride(3)},
                    images.size(2),
                    images.size(3),
                    static_cast<const int32_t*>(corners.const_data_ptr()),
                    static_cast<char*>(out.mutable_data_ptr()),
                    batch,
                    count,
                    channels,
                    height,
                    width,
                    static_cast<int64_t>(images.element_size())};
  return {out, tiles};
}

inline TokenRule checked_tokens(const Tensor& ids, const std::optional<Tensor>& special,
                                const Tensor& sample_ids, const std::optional<Tensor>& step,
                                int64_t mask_id, int64_t vocab_size,
                                const std::vector<double>& shares) {
  const auto packed = [&](const Tensor& x, ScalarType type) {
    return x.scalar_type() == type && x.is_contiguous() && x.device() == ids.device();
  };
  STD_TORCH_CHECK(ids.dim() == 2 && (packed(ids, ScalarType::Int) || packed(ids, ScalarType::Long)),
                  "ids must be int32 or int64 [B, S], contiguous");
  STD_TORCH_CHECK(ids.size(1) < int64_t(1) << 28, "ids must have fewer than 2^28 columns");
  STD_TORCH_CHECK(!special || (packed(*special, ScalarType::Bool) && special->dim() == 2 &&
                               special->size(0) == ids.size(0) && special->size(1) == ids.size(1)),
                  "special must be bool [B, S], contiguous, where the ids are");
  STD_TORCH_CHECK(packed(sample_ids, ScalarType::Long) && sample_ids.dim() == 1 &&
                      sample_ids.size(0) == ids.size(0),
                  "sample_ids must be int64 [B], contiguous, where the ids are");
  STD_TORCH_CHECK(!step || (packed(*step, ScalarType::Long) && step->numel() == 1),
                  "step must be one int64 where the ids are");
  STD_TORCH_CHECK(shares.size() == 3 && 0 < vocab_size && vocab_size <= int64_t(1) << 31,
                  "shares must hold three numbers, vocab_size be in [1, 2^31]");
  return {shares[0], shares[1], shares[1] + shares[2], mask_id, uint64_t(vocab_size)};
}

}  // namespace patch
}  // namespace fastssl
