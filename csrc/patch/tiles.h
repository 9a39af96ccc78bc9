// Rectangles cut out of images, for jigsaws and relative patches: what CPU and GPU share.
#pragma once

#include "common/portable.h"

namespace fastssl {
namespace patch {

struct Tiles {
  const char* images;  // [B, C, H, W] with any strides
  int64_t stride[4];   // in elements
  int64_t image_height, image_width;
  const int32_t* corners;  // [B, N, 2]: top, left
  char* out;               // [B, N, C, height, width], contiguous
  int64_t batch, count, channels, height, width;
  int64_t element;  // bytes of one: 1, 2, 4, 8 or 16
};

namespace {

FASTSSL_HD inline bool is_inside(const Tiles& t, int64_t tile) {
  const int64_t top = t.corners[2 * tile], left = t.corners[2 * tile + 1];
  return 0 <= top && top <= t.image_height - t.height && 0 <= left &&
         left <= t.image_width - t.width;
}

// Where row `row` of channel `channel` of tile number `tile` (of batch * count) begins in the
// images, in elements. A corner outside is moved inside: nobody looks at values on a GPU before it
// reads there.
FASTSSL_HD inline int64_t row_begin(const Tiles& t, int64_t tile, int64_t channel, int64_t row) {
  const int64_t limit_top = t.image_height - t.height, limit_left = t.image_width - t.width;
  const int64_t top = least(greatest<int64_t>(t.corners[2 * tile], 0), limit_top);
  const int64_t left = least(greatest<int64_t>(t.corners[2 * tile + 1], 0), limit_left);
  return tile / t.count * t.stride[0] + channel * t.stride[1] + (top + row) * t.stride[2] +
         left * t.stride[3];
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
