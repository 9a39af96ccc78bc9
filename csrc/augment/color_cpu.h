// Everything that happens to pixels one by one, in sweeps over the view: contrast needs the mean of
// what came before it, so that it begins a sweep.
#pragma once

#include "augment/pixel_pillow.h"
#include "augment/plane_cpu.h"
#include "augment/steps.h"

namespace fastssl {
namespace augment {
namespace {

constexpr int32_t kChunk = 512;  // pixels in flight, in the first level cache

struct Chunk {
  alignas(64) float sample[3][kChunk];
  int32_t channels, count;
};

template <class F>
inline void for_vectors(const Chunk& chunk, const F& body) {
  for (int32_t i = 0; i < chunk.count; i += kLane) body(i);
}

inline Pixel<Vec<float>> load_pixel(const Chunk& chunk, int32_t i) {
  return {load<float>(chunk.sample[0] + i), load<float>(chunk.sample[1] + i),
          load<float>(chunk.sample[2] + i)};
}

inline void store_pixel(Chunk* chunk, int32_t i, const Pixel<Vec<float>>& p) {
  store<float>(chunk->sample[0] + i, p.r);
  store<float>(chunk->sample[1] + i, p.g);
  store<float>(chunk->sample[2] + i, p.b);
}

// Applies `map` to every vector of samples, whatever the channel.
template <class F>
inline void map_samples(Chunk* chunk, const F& map) {
  for (int32_t c = 0; c < chunk->channels; ++c) {
    float* sample = chunk->sample[c];
    for_vectors(*chunk, [&](int32_t i) { store<float>(sample + i, map(load<float>(sample + i))); });
  }
}

template <class F>
inline void map_pixels(Chunk* chunk, const F& map) {
  for_vectors(*chunk, [&](int32_t i) { store_pixel(chunk, i, map(load_pixel(*chunk, i))); });
}

// The rules of the semantics.
template <class P>
struct Rules {
  using V = Vec<float>;
  static V gray(const Pixel<V>& p) { return luma<P::kLevels, V>(p); }
  static V brightness(V x, float factor) { return brighten<P::kLevels, V>(x, factor); }
  static V blended(V x, V other, const Step& step) {
    return blend<P::kLevels, V>(x, other, step.factor, step.rest);
  }
  static float mean(double sum, double count) { return float(sum) / float(count); }
  static void hue(Chunk* chunk, float turn) {
    map_pixels(chunk, [&](const Pixel<V>& p) { return turn_hue<P::kLevels, V>(p, turn); });
  }
};

template <>
struct Rules<Pil> {
  using V = Vec<float>;
  static V gray(const Pixel<V>& p) { return pillow_luma<V>(p); }
  static V brightness(V x, float factor) { return pillow_blend<V>(x, V{}, factor); }
  static V blended(V x, V other, const Step& step) {
    return pillow_blend<V>(x, other, step.factor);
  }
  static float mean(double sum, double count) { return float(floor_of(sum / count + 0.5)); }
  static void hue(Chunk* chunk, float turn) {
    using D = Vec<double>;
    float (*sample)[kChunk] = chunk->sample;
    const double steps = pillow_turn(turn);
    for (int32_t i = 0; i < chunk->count; i += kLanes<double>) {
      const Pixel<D> p{load_double<float>(sample[0] + i), load_double<float>(sample[1] + i),
                       load_double<float>(sample[2] + i)};
      const Pixel<D> turned = pillow_turn_hue<D>(p, steps);
      store_double<float>(sample[0] + i, turned.r);
      store_double<float>(sample[1] + i, turned.g);
      store_double<float>(sample[2] + i, turned.b);
    }
  }
};

template <class P>
void apply_step(const Job& job, const Step& step, float mean, Chunk* chunk) {
  using V = Vec<float>;
  const float factor = step.factor;
  if (step.kind == kGray) {
    map_pixels(chunk, [](const Pixel<V>& p) {
      const V y = Rules<P>::gray(p);
      return Pixel<V>{y, y, y};
    });
  } else if (step.kind == kSolarize) {
    const float top = P::kLevels ? 255.0f : 1.0f;
    const V threshold = Math<V>::set(float(job.settings.solarize_threshold) / (255.0f / top));
    map_samples(chunk, [&](V x) { return x >= threshold ? top - x : x; });
  } else if (step.kind == kBrightness) {
    map_samples(chunk, [&](V x) { return Rules<P>::brightness(x, factor); });
  } else if (step.kind == kContrast) {
    const V other = Math<V>::set(mean);
    map_samples(chunk, [&](V x) { return Rules<P>::blended(x, other, step); });
  } else if (step.kind == kSaturation) {
    map_pixels(chunk, [&](const Pixel<V>& p) {
      const V y = Rules<P>::gray(p);
      return Pixel<V>{Rules<P>::blended(p.r, y, step), Rules<P>::blended(p.g, y, step),
                      Rules<P>::blended(p.b, y, step)};
    });
  } else {
    Rules<P>::hue(chunk, factor);
  }
}

// The sum of the chunk's gray levels; exact where they are whole numbers, and in the same 16 parts
// in every instruction set where they are not.
template <class P>
double gray_sum(const Chunk& chunk) {
  using V = Vec<float>;
  constexpr int32_t kParts = 16, kVectors = kParts / kLane;
  V sums[kVectors] = {};
  const int32_t whole = chunk.count / kParts * kParts;
  const auto gray = [&](int32_t i) {
    return chunk.channels == 3 ? Rules<P>::gray(load_pixel(chunk, i))
                               : load<float>(chunk.sample[0] + i);
  };
  for (int32_t i = 0; i < whole; i += kParts) {
    for (int32_t v = 0; v < kVectors; ++v) sums[v] += gray(i + v * kLane);
  }
  double total = 0;
  for (int32_t k = 0; k < kParts; ++k) total += double(sums[k / kLane][k % kLane]);
  for (int32_t i = whole; i < chunk.count; i += kLane) {
    const V last = gray(i);
    for (int32_t k = 0; k < kLane && i + k < chunk.count; ++k) total += double(last[k]);
  }
  return total;
}

template <class Sample>
inline void load_chunk(const Planes<Sample>& planes, int64_t first, Chunk* chunk) {
  for (int32_t c = 0; c < chunk->channels; ++c) {
    load_samples(planes.plane(c) + first, chunk->count, chunk->sample[c]);
  }
}

template <class Sample>
inline void store_chunk(const Chunk& chunk, int64_t first, const Planes<Sample>& planes) {
  for (int32_t c = 0; c < chunk.channels; ++c) {
    store_samples(chunk.sample[c], chunk.count, planes.plane(c) + first);
  }
}

// The normalised samples in the output's type and layout.
template <class P>
void emit(const Job& job, int64_t first, Chunk* chunk) {
  using V = Vec<float>;
  const Output& out = job.output;
  for (int32_t c = 0; c < chunk->channels; ++c) {
    float* sample = chunk->sample[c];
    const int64_t at = first * out.pixel_stride + c * out.channel_stride;
    if (out.type == OutputType::kUint8) {
      uint8_t* to = static_cast<uint8_t*>(out.data) + at;
      if (!P::kLevels) {
        for_vectors(*chunk, [&](int32_t i) {
          store<float>(sample + i, clamped<V>(load<float>(sample + i), 1.0f) * 255.999f);
        });
      }
      if (out.pixel_stride == 1) {
        narrow(sample, chunk->count, to);
      } else {
        for (int32_t i = 0; i < chunk->count; ++i) to[i * out.pixel_stride] = uint8_t(sample[i]);
      }
      continue;
    }
    const V scale = Math<V>::set(job.scale[c]), shift = Math<V>::set(job.shift[c]);
    const auto normalised = [&](int32_t i) {
      return Math<V>::fused(load<float>(sample + i), scale, shift);
    };
    if (out.type == OutputType::kFloat32 && out.pixel_stride == 1) {
      float* to = static_cast<float*>(out.data) + at;
      const int32_t whole = chunk->count / kLane * kLane;
      for (int32_t i = 0; i < whole; i += kLane) store<float>(to + i, normalised(i));
      if (whole < chunk->count) {
        const V last = normalised(whole);
        for (int32_t k = 0; k < chunk->count - whole; ++k) to[whole + k] = last[k];
      }
      continue;
    }
    for_vectors(*chunk, [&](int32_t i) { store<float>(sample + i, normalised(i)); });
    if (out.type == OutputType::kFloat32) {
      float* to = static_cast<float*>(out.data) + at;
      for (int32_t i = 0; i < chunk->count; ++i) to[i * out.pixel_stride] = sample[i];
      continue;
    }
    uint16_t* to = static_cast<uint16_t*>(out.data) + at;
    if (out.type == OutputType::kFloat16) {
      for (int32_t i = 0; i < chunk->count; ++i) to[i * out.pixel_stride] = to_float16(sample[i]);
    } else if (out.pixel_stride == 1) {
      narrow_to_bfloat16(sample, chunk->count, to);
    } else {
      for (int32_t i = 0; i < chunk->count; ++i) to[i * out.pixel_stride] = to_bfloat16(sample[i]);
    }
  }
}

// Runs steps [begin, end) over the whole view. Writes the result to the planes, or to the output
// where `last`; returns the sum of gray levels after them where `summed`.
template <class P>
double sweep(const Job& job, const Planes<typename P::Sample>& planes, const Steps& steps,
             int32_t begin, int32_t end, float mean, bool summed, bool last, Chunk* chunk) {
  const int64_t pixels = int64_t(planes.height) * planes.width;
  double sum = 0;
  chunk->channels = planes.channels;
  for (int64_t first = 0; first < pixels; first += kChunk) {
    chunk->count = int32_t(least<int64_t>(kChunk, pixels - first));
    load_chunk(planes, first, chunk);
    for (int32_t i = begin; i < end; ++i) apply_step<P>(job, steps.step[i], mean, chunk);
    if (summed) sum += gray_sum<P>(*chunk);
    if (last) {
      emit<P>(job, first, chunk);
    } else if (begin < end) {
      store_chunk(*chunk, first, planes);
    }
  }
  return sum;
}

// All steps; the last sweep writes the output where `emitted`.
template <class P>
void recolor(const Job& job, const Planes<typename P::Sample>& planes, const Steps& steps,
             bool emitted, Chunk* chunk) {
  const double pixels = double(planes.height) * planes.width;
  int32_t begin = 0;
  float mean = 0;
  for (int32_t i = steps.next_contrast(0); i < steps.count; i = steps.next_contrast(i + 1)) {
    mean = Rules<P>::mean(sweep<P>(job, planes, steps, begin, i, 0, true, false, chunk), pixels);
    begin = i;
  }
  if (emitted || begin < steps.count) {
    sweep<P>(job, planes, steps, begin, steps.count, mean, false, emitted, chunk);
  }
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
