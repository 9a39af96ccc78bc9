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
  Room room;
  char *view, *work;  // of a view in scratch memory
  int64_t partial[kBlockThreads / 32];
};
constexpr int64_t kDeskBytes = (sizeof(Desk) + 15) / 16 * 16;

// A view in scratch memory, and maybe what its stages work in. Compiled on its own: addresses that
// can only be in shared memory are half as long, and quicker.
template <Semantics semantics, class Source, class Team>
FASTSSL_COLD void make_far_view(Team team, const Desk& desk) {
  using Sample = typename Rules<semantics>::Sample;
  const Memory<Sample> memory{reinterpret_cast<Sample*>(desk.view),
                              reinterpret_cast<uint32_t*>(desk.work)};
  make_view<semantics, Source>(team, desk.job, desk.steps, desk.room, memory);
}

template <Semantics semantics, class Source, class Team>
FASTSSL_TEAM void make_near_view(const Team& team, const Desk& desk, char* view, char* work) {
  using Sample = typename Rules<semantics>::Sample;
  const Memory<Sample> memory{reinterpret_cast<Sample*>(view), reinterpret_cast<uint32_t*>(work)};
  make_view<semantics, Source>(team, desk.job, desk.steps, desk.room, memory);
}

// Puts job `i` of a group on the desk. `fail` is called where it cannot be done.
template <class Fail>
FASTSSL_COLD void read_job(const Batch& batch, const Group& group, int64_t i, Desk* desk,
                           const Fail& fail) {
  // Views of an image are neighbours: its second reader finds it in the cache.
  const int64_t sample = i / group.places;
  desk->job = batch.job(batch.place[group.first + i % group.places], sample);
  if (!batch.readable(desk->job, sample)) fail();
  desk->steps.read(desk->job);
  const Settings& size = desk->job.settings;
  const int32_t teams = kBlockThreads / group.threads;
  int64_t bytes = batch.shared_bytes / teams / 16 * 16 - kDeskBytes;
  if (group.work_in_scratch) bytes = group.scratch_each;
  if (group.work_in_scratch || !group.view_in_scratch) bytes -= group.view_bytes;
  desk->room = {int64_t(size.height) * size.width, plane_stride(size.height, size.width),
                bytes / 4};
}

// What falls to a team in scratch memory: every `step`th job from `i` on.
template <Semantics semantics, class Source, class Team, class Fail>
FASTSSL_COLD void run_far(Team team, const Batch& batch, const Group& group, int64_t i,
                          int64_t step, Desk* desk, const Fail& fail) {
  for (; i < int64_t(group.places) * batch.params.batch; i += step) {
    if (team.rank == 0) read_job(batch, group, i, desk, fail);
    team.sync();
    make_far_view<semantics, Source>(team, *desk);
    team.sync();
  }
}

// Makes what falls to team `member` of block `block` of a group. `shared` is the team's share of
// the block's shared memory.
template <Semantics semantics, class Source, class Team, class Fail>
FASTSSL_TEAM void run_group(const Team& team, const Batch& batch, const Group& group, int32_t block,
                            int32_t member, char* shared, char* scratch, const Fail& fail) {
  Desk& desk = *reinterpret_cast<Desk*>(shared);
  char* free = shared + kDeskBytes;
  const int32_t teams = kBlockThreads / group.threads;
  const int64_t i = int64_t(block) * teams + member;
  if (group.view_in_scratch) {
    if (team.rank == 0) {
      desk.view = scratch + group.scratch + block * group.scratch_each;
      desk.work = group.work_in_scratch ? desk.view + group.view_bytes : free;
    }
    return run_far<semantics, Source>(team, batch, group, i, group.blocks * teams, &desk, fail);
  }
  if (i >= int64_t(group.places) * batch.params.batch) return;
  if (team.rank == 0) read_job(batch, group, i, &desk, fail);
  team.sync();
  make_near_view<semantics, Source>(team, desk, free, free + group.view_bytes);
}

}  // namespace
}  // namespace augment
}  // namespace fastssl
