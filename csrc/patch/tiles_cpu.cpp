// CPU operators of the pretext tasks: tiles of images, and tokens to predict.
#include <cstring>
#include <tuple>
#include <vector>

#include "common/stable.h"
#include "patch/pretext_operator.h"
#include "patch/tiles.h"
#include "patch/tokens_draw.h"

namespace fastssl {
namespace patch {
namespace {

template <int kBytes>
void copy_strided(const char* from, int64_t stride, int64_t count, char* to) {
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(to + i * kBytes, from + i * stride * kBytes, kBytes);
  }
}

void copy_row(const char* from, int64_t stride, int64_t count, int64_t element, char* to) {
  if (stride == 1) {
    std::memcpy(to, from, size_t(count * element));
    return;
  }
  switch (element) {
    case 1:
      return copy_strided<1>(from, stride, count, to);
    case 2:
      return copy_strided<2>(from, stride, count, to);
    case 4:
      return copy_strided<4>(from, stride, count, to);
    case 8:
      return copy_strided<8>(from, stride, count, to);
    default:
      return copy_strided<16>(from, stride, count, to);
  }
}

Tensor patch_tiles(const Tensor& images, const Tensor& corners, int64_t height, int64_t width) {
  const auto [out, checked] = checked_tiles(images, corners, height, width);
  const Tiles& t = checked;
  const int64_t all = t.batch * t.count;
  for (int64_t tile = 0; tile < all; ++tile) {
    STD_TORCH_CHECK(is_inside(t, tile), "corners: got (", t.corners[2 * tile], ", ",
                    t.corners[2 * tile + 1], "), the tile must be inside the image");
  }
  const int64_t row_bytes = t.width * t.element, tile_bytes = t.channels * t.height * row_bytes;
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(1, tile_bytes));
  torch::stable::parallel_for(0, all, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      char* to = t.out + tile * tile_bytes;
      for (int64_t channel = 0; channel < t.channels; ++channel) {
        for (int64_t row = 0; row < t.height; ++row, to += row_bytes) {
          const char* from = t.images + row_begin(t, tile, channel, row) * t.element;
          copy_row(from, t.stride[3], t.width, t.element, to);
        }
      }
    }
  });
  return out;
}

template <class Id>
void mask_rows(const Tensor& ids, const std::optional<Tensor>& special, const Tensor& sample_ids,
               uint64_t seed, uint64_t step, const TokenRule& rule, const Tensor& inputs,
               const Tensor& labels) {
  const Id* from = static_cast<const Id*>(ids.const_data_ptr());
  const bool* spared = special ? static_cast<const bool*>(special->const_data_ptr()) : nullptr;
  const int64_t* samples = static_cast<const int64_t*>(sample_ids.const_data_ptr());
  Id* input = static_cast<Id*>(inputs.mutable_data_ptr());
  Id* label = static_cast<Id*>(labels.mutable_data_ptr());
  const int64_t length = ids.size(1);
  torch::stable::parallel_for(0, ids.numel(), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Draws draws(seed, step, uint64_t(samples[i / length]), Purpose::kTokens, 0);
      const DrawnToken drawn =
          draw_token(rule, draws, uint32_t(i % length), from[i], spared && spared[i]);
      input[i] = Id(drawn.input);
      label[i] = Id(drawn.label);
    }
  });
}

std::tuple<Tensor, Tensor> patch_mask_tokens(const Tensor& ids,
                                             const std::optional<Tensor>& special,
                                             const Tensor& sample_ids,
                                             const std::optional<Tensor>& step, int64_t step_value,
                                             int64_t seed, int64_t mask_id, int64_t vocab_size,
                                             const std::vector<double>& shares) {
  const TokenRule rule =
      checked_tokens(ids, special, sample_ids, step, mask_id, vocab_size, shares);
  if (step) step_value = *static_cast<const int64_t*>(step->const_data_ptr());
  const Tensor inputs = torch::stable::new_empty(ids, ids.sizes());
  const Tensor labels = torch::stable::new_empty(ids, ids.sizes());
  const auto run = ids.scalar_type() == ScalarType::Int ? mask_rows<int32_t> : mask_rows<int64_t>;
  run(ids, special, sample_ids, uint64_t(seed), uint64_t(step_value), rule, inputs, labels);
  return {inputs, labels};
}

}  // namespace
}  // namespace patch

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("patch_tiles", TORCH_BOX(&patch::patch_tiles));
  m.impl("patch_mask_tokens", TORCH_BOX(&patch::patch_mask_tokens));
}

}  // namespace fastssl
