// The seam between the CUDA operators on patches and their kernels, and how launches are laid out.
#pragma once

#include "patch/gather_team.h"
#include "patch/loss_team.h"
#include "patch/plan.h"
#include "patch/pretext_team.h"
#include "patch/tokens_team.h"

namespace fastssl {
namespace patch {

constexpr int32_t kThreads = 256;       // of a block
constexpr int32_t kLastThreads = 1024;  // of the blocks that add up what others left

// What a device offers.
struct Device {
  int32_t multiprocessors;
};

// A launch of teams of `threads` threads, `teams` of them in a block.
struct Layout {
  int32_t threads, teams;
  int64_t bytes;   // of scratch memory for each team
  bool in_global;  // where shared memory has no room for that
  int64_t blocks;

  int64_t shared() const { return in_global ? 0 : teams * bytes; }
  int64_t global() const { return in_global ? blocks * teams * bytes : 0; }
};

// Each returns null, or what CUDA has to say. `stream` is a cudaStream_t. Types are those of
// common/half.h; `packed`: rows are whole packs of 16 bytes, aligned.
const char* use_device(int32_t index);  // for the launches of this thread that follow
const char* find_device(int32_t index, Device* out);
const char* launch_fill(const double* values, int64_t count, double* to, void* stream);
const char* launch_gather(const GatherBatch& batch, DType out, bool packed, void* stream);
const char* launch_tokens(const TokensBatch& batch, DType in, DType out, bool packed, void* stream);
const char* launch_sum(const SumBatch& batch, DType in, bool packed, void* stream);
const char* launch_scale(const ScaleBatch& batch, DType type, bool packed, void* stream);
const char* launch_loss(const LossBatch& batch, DType type, bool packed, const Layout& layout,
                        void* scratch, void* stream);
const char* launch_tiles(const Tiles& tiles, void* stream);
const char* launch_mask_tokens(const TokenBatch& batch, void* stream);

// Plans: one team, a block, for each sample.
const char* launch_plan(const RandomPlan& plan, const PlanBatch& batch, const Layout& layout,
                        void* scratch, void* stream);
const char* launch_plan(const BlockPlan& plan, const PlanBatch& batch, const Layout& layout,
                        void* scratch, void* stream);
const char* launch_plan(const InversePlan& plan, const PlanBatch& batch, const Layout& layout,
                        void* scratch, void* stream);
const char* launch_plan(const MultiblockPlan& plan, const PlanBatch& batch, const Layout& layout,
                        void* scratch, void* stream);

// Shared memory that a block has without asking for more, but for what kernels declare.
constexpr int64_t kSharedBytes = 47 << 10;

// Threads for a row of so many packs, at most `most` packs for each where they are enough.
inline int32_t row_threads(int64_t packs, int64_t most = 4) {
  int32_t threads = 4;
  while (threads < kThreads && threads * most < packs) threads *= 2;
  return threads;
}

// `size` is that of the compute type.
inline Layout loss_layout(const LossBatch& batch, int64_t size, bool packed) {
  Layout layout{};
  const int64_t width = batch.pixels.width();
  layout.threads = packed && width <= 2048 ? 32 : kThreads;
  layout.teams = kThreads / layout.threads;
  layout.bytes = (batch.scratch() * size + 15) / 16 * 16;
  while (layout.teams > 1 && layout.teams * layout.bytes > kSharedBytes) layout.teams /= 2;
  layout.in_global = layout.teams * layout.bytes > kSharedBytes;
  layout.blocks = (batch.teams + layout.teams - 1) / layout.teams;
  return layout;
}

// Teams of whole patches that are in global memory are few: each has scratch memory of its own.
inline int64_t loss_teams(const LossBatch& batch, int64_t size) {
  const int64_t most = batch.scratch() * size > kSharedBytes ? 512 : kMostLossTeams;
  return greatest<int64_t>(1, least(batch.rows(), most));
}

template <class Plan>
Layout plan_layout(const Plan& plan, const PlanBatch& batch, const Device& device) {
  Layout layout{};
  layout.threads = 32;
  while (layout.threads < kThreads && layout.threads * 2 <= batch.length) layout.threads *= 2;
  layout.teams = 1;
  layout.bytes = scratch_words(plan, layout.threads) * 8;
  layout.in_global = layout.bytes > kSharedBytes;
  layout.blocks = least<int64_t>(batch.batch, 0x7fffffff);  // a block draws more than one then
  if (layout.in_global) layout.blocks = least<int64_t>(layout.blocks, 2 * device.multiprocessors);
  return layout;
}

}  // namespace patch
}  // namespace fastssl
