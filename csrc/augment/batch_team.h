// What one launch makes: views of several places in the list, of one batch, shared out among teams.
#pragma once

#include "augment/view_team.h"

namespace fastssl {
namespace augment {

constexpr int32_t kBlockThreads = 512;  // of 128 registers: more threads would spill
constexpr int32_t kMostViews = 16;      // in a launch, whose arguments have room for 4 KB

// What a view's device offers.
struct Device {
  int32_t shared_bytes, multiprocessors;
};

struct Place {
  Settings settings;
  Output output;          // of the first sample
  int64_t output_stride;  // from sample to sample
  int32_t view;           // in `Params`
};

// Views of one size. Where one fits into its share of the block's shared memory, a team makes one
// view there; else a block makes one after the other in scratch memory of its own.
struct Group {
  int32_t first, places;  // in Batch::place
  int32_t threads;        // of a team
  int64_t blocks, view_bytes;
  int64_t scratch, scratch_each;  // bytes: where it begins, and for each block
  bool view_in_scratch, work_in_scratch;
};

struct Batch {
  Params params;
  Image images;
  int64_t image_stride, elements;
  const int64_t* shapes;
  int32_t channels, shared_bytes, groups;
  float scale[3], shift[3];
  Group group[kMostViews];
  Place place[kMostViews];

  FASTSSL_TEAM Job job(const Place& p, int64_t sample) const {
    Job job{};
    job.image = images;
    int64_t offset = sample * image_stride;
    if (shapes) {
      offset = shapes[3 * sample];
      job.image.height = shapes[3 * sample + 1];
      job.image.width = job.image.row_stride = shapes[3 * sample + 2];
      job.image.channel_stride = job.image.height * job.image.width;
    }
    job.image.data = static_cast<const char*>(images.data) + offset * (images.is_float ? 4 : 1);
    job.settings = p.settings;
    job.drawn = params.get(p.view, sample);
    job.output = p.output;
    const int64_t size = p.output.type == OutputType::kFloat32 ? 4
                         : p.output.type == OutputType::kUint8 ? 1
                                                               : 2;
    job.output.data = static_cast<char*>(p.output.data) + sample * p.output_stride * size;
    job.channels = channels;
    for (int c = 0; c < 3; ++c) job.scale[c] = scale[c];
    for (int c = 0; c < 3; ++c) job.shift[c] = shift[c];
    return job;
  }

  // Whether what the job reads is there. Only the device can tell.
  FASTSSL_TEAM bool readable(const Job& job, int64_t sample) const {
    const Drawn& d = job.drawn;
    const int64_t h = job.image.height, w = job.image.width;
    const bool inside = d.top >= 0 && d.left >= 0 && d.height > 0 && d.width > 0 &&
                        int64_t(d.top) + d.height <= h && int64_t(d.left) + d.width <= w;
    if (!inside || !shapes) return inside;
    const int64_t offset = shapes[3 * sample], most = elements / channels;
    return offset >= 0 && h <= most / w && offset <= elements - channels * h * w;
  }
};

namespace {

// What a team keeps in front of its memory.
struct Desk {
  Job job;
  Steps steps;
  int64_t partial[kBlockThreads / 32];
};
constexpr int64_t kDeskBytes = (sizeof(Desk) + 15) / 16 * 16;

// Makes what falls to team `member` of block `block` of a group. `shared` is the team's share of
// the block's shared memory. `fail` is called where a job cannot be done.
template <Semantics semantics, class Source, class Team, class Fail>
FASTSSL_TEAM void run_group(const Team& team, const Batch& batch, const Group& group, int64_t block,
                            int32_t member, char* shared, char* scratch, const Fail& fail) {
  Desk& desk = *reinterpret_cast<Desk*>(shared);
  const int32_t teams = kBlockThreads / group.threads;
  char* free = shared + kDeskBytes;
  int64_t bytes = batch.shared_bytes / teams / 16 * 16 - kDeskBytes;
  Memory memory{free, nullptr, 0};
  if (group.view_in_scratch) {
    memory.view = scratch + group.scratch + block * group.scratch_each;
  } else {
    free += group.view_bytes;
    bytes -= group.view_bytes;
  }
  if (group.work_in_scratch) {
    free = static_cast<char*>(memory.view) + group.view_bytes;
    bytes = group.scratch_each - group.view_bytes;
  }
  memory.work = reinterpret_cast<uint32_t*>(free);
  memory.words = bytes / 4;
  const int64_t items = int64_t(group.places) * batch.params.batch;
  for (int64_t i = block * teams + member; i < items; i += group.blocks * teams) {
    if (team.rank == 0) {
      // Views of an image are neighbours: its second reader finds it in the cache.
      const int64_t sample = i / group.places;
      desk.job = batch.job(batch.place[group.first + i % group.places], sample);
      if (!batch.readable(desk.job, sample)) fail();
      desk.steps.read(desk.job);
    }
    team.sync();
    make_view<semantics, Source>(team, desk.job, desk.steps, memory);
    team.sync();
  }
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
