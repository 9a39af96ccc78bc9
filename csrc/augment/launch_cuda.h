// The seam between the CUDA operators and their kernels, and how a launch is laid out.
#pragma once

#include "augment/batch_team.h"
#include "augment/draw.h"

namespace fastssl {
namespace augment {

struct DrawBatch {
  Params params;
  const int64_t *ids, *shapes, *step;  // of which the last two may be null
  int64_t height, width, step_value, seed;
  int64_t first, views;
  double recipe[kMostViews][kRecipeNumbers];  // of `Recipe`
};

// Each returns null, or what CUDA has to say. `stream` is a cudaStream_t.
const char* find_device(int32_t index, Device* out);
const char* launch_draw(int32_t device, const DrawBatch& batch, void* stream);
const char* launch_apply(int32_t device, const Batch& batch, Semantics semantics, void* scratch,
                         void* stream);

// 4-byte words that the stages of a view work in at least.
template <class Sample>
int64_t least_words(const Settings& s) {
  return greatest<int64_t>(2048, blur_words<Sample>(s.height, s.width, s.blur_taps));
}

// Decides where the views of group `g` are made.
template <class Sample>
void lay_out(Batch* batch, Group* g, const Device& device) {
  const Settings& first = batch->place[g->first].settings;
  const int64_t pixels = int64_t(first.height) * first.width;
  int64_t words = 0;
  for (int32_t i = g->first; i < g->first + g->places; ++i) {
    words = greatest(words, least_words<Sample>(batch->place[i].settings));
  }
  const int64_t work = words * 4;
  g->view_bytes =
      batch->channels * plane_stride(first.height, first.width) * int64_t(sizeof(Sample));
  // Some tens of pixels for each thread; no multiprocessor idle while teams share another; all in
  // shared memory.
  const int64_t items = g->places * batch->params.batch;
  const auto share = [&] { return device.shared_bytes / (kBlockThreads / g->threads) / 16 * 16; };
  g->threads = 64;
  while (g->threads < kBlockThreads &&
         (g->threads * 64 <= pixels ||
          items * g->threads < device.multiprocessors * kBlockThreads ||
          kDeskBytes + g->view_bytes + work > share())) {
    g->threads *= 2;
  }
  g->view_in_scratch = kDeskBytes + g->view_bytes + work > share();
  g->work_in_scratch = g->view_in_scratch && kDeskBytes + work > share();
  const int64_t teams = kBlockThreads / g->threads;
  g->blocks = (items + teams - 1) / teams;
  if (g->view_in_scratch) {
    g->blocks = least<int64_t>(g->blocks, device.multiprocessors);
    g->scratch_each = (g->view_bytes + (g->work_in_scratch ? work : 0) + 255) / 256 * 256;
  }
}

// Views [first, first + count) of a call, the largest first, views of one size together. Returns
// the bytes of scratch memory that they need.
template <class Call>
int64_t make_batch(const Call& call, int64_t first, int64_t count, const Device& device,
                   Batch* out) {
  Batch& batch = *out;
  batch = {};
  batch.params = call.params;
  batch.images = call.images;
  batch.image_stride = call.image_stride;
  batch.elements = call.elements;
  batch.shapes = call.shapes;
  batch.channels = call.channels;
  batch.shared_bytes = device.shared_bytes;
  for (int c = 0; c < 3; ++c) {
    batch.scale[c] = call.scale[c];
    batch.shift[c] = call.shift[c];
  }
  const auto before = [](const Settings& a, const Settings& b) {
    const int64_t x = int64_t(a.height) * a.width, y = int64_t(b.height) * b.width;
    return x != y ? x > y : a.height > b.height;
  };
  for (int64_t v = first; v < first + count; ++v) {
    const size_t n = size_t(v);
    int64_t at = v - first;
    for (; at > 0 && before(call.settings[n], batch.place[at - 1].settings); --at) {
      batch.place[at] = batch.place[at - 1];
    }
    batch.place[at] = {call.settings[n], call.outputs[n], call.output_strides[n], int32_t(v)};
  }
  int64_t scratch = 0;
  for (int32_t i = 0; i < count;) {
    Group* g = &batch.group[batch.groups++];
    const Settings& size = batch.place[i].settings;
    for (g->first = i; i < count && batch.place[i].settings.height == size.height &&
                       batch.place[i].settings.width == size.width;
         ++i) {
      ++g->places;
    }
    if (call.semantics == Semantics::kTvFloat) {
      lay_out<float>(&batch, g, device);
    } else {
      lay_out<uint8_t>(&batch, g, device);
    }
    g->scratch = scratch;
    scratch += g->blocks * g->scratch_each;
  }
  return scratch;
}

}  // namespace augment
}  // namespace fastssl
