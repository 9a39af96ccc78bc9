// Blurs, in place: torchvision's Gaussian and Pillow's boxes.
#pragma once

#include "augment/plane_cpu.h"

namespace fastssl {
namespace augment {
namespace {

constexpr int32_t kMostRadius = 512;  // of a Gaussian

inline int32_t reflected(int32_t i, int32_t count) {
  i = i < 0 ? -i : i;
  return i < count ? i : 2 * (count - 1) - i;
}

// Sum of weight[|d|] * from[d * step] over |d| <= radius, for vectors side by side: independent
// sums hide the latency of one.
template <int vectors>
inline void weigh(const float* from, int64_t step, const float* weight, int32_t radius,
                  Vec<float> (&sums)[vectors]) {
  using M = Math<Vec<float>>;
  for (int v = 0; v < vectors; ++v) sums[v] = Vec<float>{};
  for (int32_t d = -radius; d <= radius; ++d) {
    const Vec<float> w = M::set(weight[d < 0 ? -d : d]);
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      sums[v] = M::fused(load<float>(from + d * step + v * kLane), w, sums[v]);
    }
  }
}

// F is the semantics whose sums are rounded: TvUint8 for Pillow's images, too.
template <class F>
void blur_gaussian(const Job& job, const Planes<typename F::Sample>& planes, int32_t channels,
                   Arena arena) {
  const int32_t width = planes.width, height = planes.height;
  float* weight = arena.take<float>(kMostRadius + 1);
  const int32_t radius = gaussian(job.settings.blur_taps, job.drawn.sigma, weight);
  constexpr int kVectors = 4;
  constexpr int32_t kBlock = kVectors * kLane;
  const int64_t pitch = padded(width);
  float* row = arena.take<float>(pitch + 2 * padded(radius)) + padded(radius);
  float* blurred = arena.take<float>(pitch * (int64_t(height) + 2 * radius)) + radius * pitch;
  for (int32_t c = 0; c < channels; ++c) {
    typename F::Sample* plane = planes.plane(c);
    for (int32_t y = 0; y < height; ++y) {
      const typename F::Sample* from = plane + int64_t(y) * width;
      load_samples(from, width, row);
      for (int32_t x = 1; x <= radius; ++x) {
        row[-x] = row[reflected(-x, width)];
        row[width - 1 + x] = row[reflected(width - 1 + x, width)];
      }
      for (int32_t x = 0; x < width; x += kBlock) {
        Vec<float> sums[kVectors];
        weigh(row + x, 1, weight, radius, sums);
        for (int v = 0; v < kVectors; ++v) {
          store<float>(blurred + y * pitch + x + v * kLane, sums[v]);
        }
      }
    }
    for (int32_t y = 1; y <= radius; ++y) {
      const auto copy = [&](int32_t to, int32_t from) {
        __builtin_memcpy(blurred + to * pitch, blurred + from * pitch,
                         sizeof(float) * size_t(pitch));
      };
      copy(-y, reflected(-y, height));
      copy(height - 1 + y, reflected(height - 1 + y, height));
    }
    // In strips of columns, which stay in the first level cache.
    for (int32_t x = 0; x < width; x += kBlock) {
      const int32_t columns = least(kBlock, width - x);
      for (int32_t y = 0; y < height; ++y) {
        Vec<float> sums[kVectors];
        weigh(blurred + y * pitch + x, pitch, weight, radius, sums);
        for (int v = 0; v < kVectors; ++v) store<float>(row + v * kLane, F::rounded(sums[v]));
        store_samples(row, columns, plane + int64_t(y) * width + x);
      }
    }
  }
}

// Three box blurs of `count` positions, each position `kLane` numbers wide, from `line` to `line`.
// A box is a sum that moves along: what leaves is subtracted, what enters is added.
inline void box_lines(const Box& box, int32_t count, uint32_t* line, uint32_t* other) {
  using V = Vec<uint32_t>;
  const int32_t last = count - 1, r = box.radius;
  const auto at = [&](int32_t i) {
    return load<uint32_t>(line + int64_t(least(greatest(i, 0), last)) * kLane);
  };
  for (int pass = 0; pass < 3; ++pass) {
    // Positions -r - 1 to r - 1; beyond either end, its number again.
    V sum = at(0) * uint32_t(r + 1) + at(last) * uint32_t(greatest(r - count, 0));
    for (int32_t i = 0; i < least(r, count); ++i) sum += at(i);
    for (int32_t i = 0; i < count; ++i) {
      sum += at(i + r) - at(i - r - 1);
      const V total = sum * box.inner + (at(i - r - 1) + at(i + r + 1)) * box.outer;
      store<uint32_t>(other + int64_t(i) * kLane, (total + (1u << 23)) >> 24);
    }
    uint32_t* swapped = line;
    line = other;
    other = swapped;
  }
}

// Rows are turned to columns, as many as a vector has lanes; columns are read as they lie. After an
// odd number of passes the result is in the second buffer.
inline void blur_box(const Job& job, const Planes<uint8_t>& planes, int32_t channels, Arena arena) {
  const Box box = pillow_box(job.drawn.sigma);
  const int32_t width = planes.width, height = planes.height;
  const int64_t most = padded(greatest(width, height));
  uint32_t* line = arena.take<uint32_t>(most * kLane);
  uint32_t* other = arena.take<uint32_t>(most * kLane);
  for (int32_t c = 0; c < channels; ++c) {
    uint8_t* plane = planes.plane(c);
    for (int32_t y = 0; y < height; y += kLane) {
      const int32_t rows = least(kLane, height - y);
      for (int32_t i = 0; i < rows; ++i) {
        widen(plane + int64_t(y + i) * width, 1, width, other + i * most);
      }
      for (int32_t x = 0; x < width; x += kLane) {
        Vec<uint32_t> square[kLane];
        for (int32_t i = 0; i < kLane; ++i) square[i] = load<uint32_t>(other + i * most + x);
        transpose(square);
        for (int i = 0; i < kLane; ++i) store<uint32_t>(line + int64_t(x + i) * kLane, square[i]);
      }
      box_lines(box, width, line, other);
      for (int32_t x = 0; x < width; ++x) {
        for (int32_t i = 0; i < rows; ++i) {
          plane[int64_t(y + i) * width + x] = uint8_t(other[int64_t(x) * kLane + i]);
        }
      }
    }
    for (int32_t x = 0; x < width; x += kLane) {
      const int32_t columns = least(kLane, width - x);
      for (int32_t y = 0; y < height; ++y) {
        widen(plane + int64_t(y) * width + x, 1, columns, line + int64_t(y) * kLane);
      }
      box_lines(box, height, line, other);
      for (int32_t y = 0; y < height; ++y) {
        narrow(other + int64_t(y) * kLane, columns, plane + int64_t(y) * width + x);
      }
    }
  }
}

inline int64_t blur_bytes(const Job& job) {
  Arena arena{nullptr};
  const int64_t width = padded(job.settings.width), height = job.settings.height;
  const int64_t radius = job.settings.blur_taps / 2;
  arena.take<float>(kMostRadius + 1);
  arena.take<float>(width + 2 * padded(radius));
  arena.take<float>(width * (height + 2 * radius));
  Arena boxes{nullptr};
  boxes.take<uint32_t>(2 * padded(greatest(width, height)) * kLane);
  return greatest(arena.used, boxes.used);
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
