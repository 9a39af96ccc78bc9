// The kernels: each makes its team and runs a template over it.
#include <cuda_runtime_api.h>

#include "patch/launch_cuda.h"
#include "patch/levels_team.h"
#include "patch/plan_team.h"

namespace fastssl {
namespace patch {
namespace {

constexpr int kFillValues = 256;
constexpr unsigned kScaleBlocks = 1024;
struct FillBatch {
  double value[kFillValues];
  double* to;
};
static_assert(sizeof(GatherBatch) <= 4096 && sizeof(LossBatch) <= 4096 &&
                  sizeof(BlockPlan) + sizeof(PlanBatch) <= 4096 && sizeof(FillBatch) <= 4096,
              "kernel arguments");

// As torch's own kernels do with an index out of bounds: the error comes up at the next
// synchronisation.
struct Trap {
  __device__ void operator()() const { __trap(); }
};

// Teams of 2^log threads that never meet.
struct Spread {
  Team team;
  int64_t number, count;

  __device__ explicit Spread(int32_t log) {
    team.size = 1 << log;
    team.rank = int32_t(threadIdx.x) & (team.size - 1);
    const int32_t teams = int32_t(blockDim.x) >> log;
    number = int64_t(blockIdx.x) * teams + (int32_t(threadIdx.x) >> log);
    count = int64_t(gridDim.x) * teams;
  }
};

__device__ CudaTeam whole_block(int64_t* partial) {
  CudaTeam team;
  team.rank = int32_t(threadIdx.x);
  team.size = int32_t(blockDim.x);
  team.barrier = 0;
  team.partial = partial;
  return team;
}

__global__ void fill_kernel(const __grid_constant__ FillBatch batch) {
  batch.to[threadIdx.x] = batch.value[threadIdx.x];
}

template <class Source, class Out, int kCount>
__global__ void __launch_bounds__(kThreads, sizeof(Source) == 1 ? 4
                                            : sizeof(Out) < 8   ? 3
                                                                : 1)
    gather_kernel(const __grid_constant__ GatherBatch batch, int32_t log) {
  const Spread s(log);
  gather_rows<Source, Out, kCount>(s.team, batch, s.number, s.count, Trap());
}

template <class In, class Out, int kCount>
__global__ void __launch_bounds__(kThreads, sizeof(Out) == 8 ? 1 : 4)
    tokens_kernel(const __grid_constant__ TokensBatch batch, int32_t log) {
  const Spread s(log);
  token_rows<In, Out, kCount>(s.team, batch, s.number, s.count, Trap());
}

template <class In, int kCount>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ SumBatch batch, int32_t log) {
  const Spread s(log);
  if (s.number < batch.chunks) sum_chunk<In, kCount>(s.team, batch, s.number);
}

template <class C>
__global__ void __launch_bounds__(kThreads)
    sum_last_kernel(const __grid_constant__ SumBatch batch) {
  __shared__ double scratch[kThreads];
  sum_chunks<C>(whole_block(nullptr), batch, blockIdx.x, scratch);
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ ScaleBatch batch) {
  const Spread s(0);
  scale_packs<T, kCount>(batch, s.number, s.count);
}

// Blocks of a multiprocessor: 80 registers for each thread, where numbers are not float64.
template <class T, int kCount, bool kWarp>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 3)
    loss_kernel(const __grid_constant__ LossBatch batch, const __grid_constant__ Layout layout,
                char* scratch) {
  extern __shared__ __align__(16) char shared[];
  __shared__ int64_t partial[kThreads / 32];
  const int32_t member = int32_t(threadIdx.x) / layout.threads;
  const int64_t number = int64_t(blockIdx.x) * layout.teams + member;
  if (number >= batch.teams) return;
  auto* memory = reinterpret_cast<Compute<T>*>(layout.in_global ? scratch + number * layout.bytes
                                                                : shared + member * layout.bytes);
  if constexpr (kWarp) {
    WarpTeam team;
    team.rank = int32_t(threadIdx.x) % 32;
    team.size = 32;
    loss_rows<T, kCount>(team, batch, number, memory, Trap());
  } else {
    loss_rows<T, kCount>(whole_block(partial), batch, number, memory, Trap());
  }
}

// A warp for each team.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads, 3)
    levels_kernel(const __grid_constant__ LossBatch batch, const __grid_constant__ Layout layout) {
  extern __shared__ __align__(16) char shared[];
  const int32_t member = int32_t(threadIdx.x) / 32;
  const int64_t number = int64_t(blockIdx.x) * layout.teams + member;
  if (number >= batch.teams) return;
  WarpTeam team;
  team.rank = int32_t(threadIdx.x) % 32;
  team.size = 32;
  auto* memory = reinterpret_cast<float*>(shared + member * int32_t(layout.bytes));
  level_rows<T, kCount, 1>(team, batch, number, memory, Trap());
}

template <class C>
__global__ void __launch_bounds__(kLastThreads)
    loss_last_kernel(const __grid_constant__ LossBatch batch) {
  __shared__ int64_t partial[kLastThreads / 32];
  sum_losses<C>(whole_block(partial), batch);
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    tiles_kernel(const __grid_constant__ Tiles tiles, int32_t log) {
  const Spread s(log);
  tile_planes<T, kCount>(s.team, tiles, s.number, s.count);
}

__global__ void __launch_bounds__(kThreads)
    mask_tokens_kernel(const __grid_constant__ TokenBatch batch) {
  const Spread s(0);
  mask_tokens(batch, s.number, s.count);
}

// kShared: whether a sample's scratch memory is shared memory.
template <class Plan, bool kShared>
__global__ void __launch_bounds__(kThreads, 4)
    plan_kernel(const __grid_constant__ Plan plan, const __grid_constant__ PlanBatch batch,
                const __grid_constant__ Layout layout, char* scratch) {
  extern __shared__ __align__(16) char shared[];
  __shared__ int64_t partial[kThreads / 32];
  const CudaTeam team = whole_block(partial);
  uint64_t* memory;
  if constexpr (kShared) {
    memory = reinterpret_cast<uint64_t*>(shared);
  } else {
    memory = reinterpret_cast<uint64_t*>(scratch + blockIdx.x * layout.bytes);
  }
  for (int64_t b = blockIdx.x; b < batch.batch; b += gridDim.x) {
    draw_plan(team, plan, batch, b, memory);
    team.sync();
  }
}

const char* message(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}
const char* launched() { return message(cudaGetLastError()); }

cudaStream_t on(void* stream) { return static_cast<cudaStream_t>(stream); }

// So many that items are done in one go, as far as a grid reaches.
unsigned blocks_for(int64_t items, int64_t each) {
  return unsigned(greatest<int64_t>(1, least<int64_t>((items + each - 1) / each, 0x7fffffff)));
}

template <class Kernel, class Batch>
const char* launch_rows(Kernel kernel, const Batch& batch, int64_t rows, int64_t packs,
                        void* stream, int64_t most = 4) {
  const int32_t threads = row_threads(packs, most);
  int32_t log = 0;
  while (1 << log < threads) ++log;
  kernel<<<blocks_for(rows, kThreads / threads), kThreads, 0, on(stream)>>>(batch, log);
  return launched();
}

template <class Source, class Out>
const char* gather(const GatherBatch& batch, bool packed, void* stream) {
  constexpr int kCount = kPackOf<Out>;
  const int64_t width = batch.pixels.width();
  if (!packed) {
    return launch_rows(gather_kernel<Source, Out, 1>, batch, batch.rows(), width, stream);
  }
  return launch_rows(gather_kernel<Source, Out, kCount>, batch, batch.rows(), width / kCount,
                     stream, kGatherPacks);
}

template <class In, class Out>
const char* tokens(const TokensBatch& batch, bool packed, void* stream) {
  constexpr int kCount = kPackOf<Out>;
  if (!packed) {
    return launch_rows(tokens_kernel<In, Out, 1>, batch, batch.rows(), batch.width, stream);
  }
  return launch_rows(tokens_kernel<In, Out, kCount>, batch, batch.rows(), batch.width / kCount,
                     stream);
}

template <class T>
const char* loss(const LossBatch& batch, bool packed, const Layout& layout, void* scratch,
                 cudaStream_t stream) {
  constexpr int kCount = kPackOf<T>;
  if constexpr (sizeof(T) < 8) {
    if (batch.levels.applies) {
      levels_kernel<T, kCount><<<unsigned(layout.blocks), unsigned(32 * layout.teams),
                                 size_t(layout.shared()), stream>>>(batch, layout);
      if (const char* error = launched()) return error;
      loss_last_kernel<Compute<T>><<<1, kLastThreads, 0, stream>>>(batch);
      return launched();
    }
  }
  const auto kernel = layout.threads == 32 ? loss_kernel<T, kCount, true>
                      : packed             ? loss_kernel<T, kCount, false>
                                           : loss_kernel<T, 1, false>;
  kernel<<<unsigned(layout.blocks), unsigned(layout.threads * layout.teams),
           size_t(layout.shared()), stream>>>(batch, layout, static_cast<char*>(scratch));
  if (const char* error = launched()) return error;
  loss_last_kernel<Compute<T>><<<1, kLastThreads, 0, stream>>>(batch);
  return launched();
}

template <class T>
const char* tiles_of(const Tiles& tiles, void* stream) {
  constexpr int kCount = kPackOf<T>;
  const int64_t area = tiles.height * tiles.width;
  const int64_t planes = tiles.batch * tiles.count * tiles.channels;
  if (area % kCount != 0) return launch_rows(tiles_kernel<T, 1>, tiles, planes, area, stream);
  return launch_rows(tiles_kernel<T, kCount>, tiles, planes, area / kCount, stream);
}

template <class Plan>
const char* plan_of(const Plan& plan, const PlanBatch& batch, const Layout& layout, void* scratch,
                    void* stream) {
  const auto kernel = layout.in_global ? plan_kernel<Plan, false> : plan_kernel<Plan, true>;
  kernel<<<unsigned(layout.blocks), unsigned(layout.threads), size_t(layout.shared()),
           on(stream)>>>(plan, batch, layout, static_cast<char*>(scratch));
  return launched();
}

}  // namespace

const char* use_device(int32_t index) { return message(cudaSetDevice(index)); }

const char* find_device(int32_t index, Device* out) {
  return message(
      cudaDeviceGetAttribute(&out->multiprocessors, cudaDevAttrMultiProcessorCount, index));
}

const char* launch_fill(const double* values, int64_t count, double* to, void* stream) {
  for (int64_t first = 0; first < count; first += kFillValues) {
    FillBatch batch{};
    const int64_t some = least<int64_t>(kFillValues, count - first);
    for (int64_t i = 0; i < some; ++i) batch.value[i] = values[first + i];
    batch.to = to + first;
    fill_kernel<<<1, unsigned(some), 0, on(stream)>>>(batch);
    if (const char* error = launched()) return error;
  }
  return nullptr;
}

const char* launch_gather(const GatherBatch& batch, DType out, bool packed, void* stream) {
  return with_type(out, [&](auto to) -> const char* {
    using Out = decltype(to);
    if (batch.pixels.source == kUint8Source) return gather<uint8_t, Out>(batch, packed, stream);
    return with_type(DType(batch.pixels.source),
                     [&](auto from) { return gather<decltype(from), Out>(batch, packed, stream); });
  });
}

const char* launch_tokens(const TokensBatch& batch, DType in, DType out, bool packed,
                          void* stream) {
  return with_type(in, [&](auto from) {
    using In = decltype(from);
    if (in == out) return tokens<In, In>(batch, packed, stream);
    return tokens<In, Compute<In>>(batch, packed, stream);
  });
}

const char* launch_sum(const SumBatch& batch, DType in, bool packed, void* stream) {
  return with_type(in, [&](auto from) -> const char* {
    using In = decltype(from);
    constexpr int kCount = kSumPackOf<In>;
    const char* error =
        packed ? launch_rows(sum_kernel<In, kCount>, batch, batch.chunks, batch.width / kCount,
                             stream, 1)
               : launch_rows(sum_kernel<In, 1>, batch, batch.chunks, batch.width, stream, 1);
    if (error) return error;
    const unsigned tiles = blocks_for(batch.width, kTileColumns);
    sum_last_kernel<Compute<In>><<<tiles, kThreads, 0, on(stream)>>>(batch);
    return launched();
  });
}

const char* launch_scale(const ScaleBatch& batch, DType type, bool packed, void* stream) {
  return with_type(type, [&](auto x) {
    using T = decltype(x);
    constexpr int kCount = kPackOf<T>;
    // Few blocks: most often the factor is 1, and all that each does is to look at it.
    const unsigned blocks =
        least(kScaleBlocks, blocks_for(batch.count / (packed ? kCount : 1), kThreads * 4));
    if (packed) {
      scale_kernel<T, kCount><<<blocks, kThreads, 0, on(stream)>>>(batch);
    } else {
      scale_kernel<T, 1><<<blocks, kThreads, 0, on(stream)>>>(batch);
    }
    return launched();
  });
}

const char* launch_loss(const LossBatch& batch, DType type, bool packed, const Layout& layout,
                        void* scratch, void* stream) {
  return with_type(
      type, [&](auto x) { return loss<decltype(x)>(batch, packed, layout, scratch, on(stream)); });
}

const char* launch_tiles(const Tiles& tiles, void* stream) {
  switch (tiles.element) {
    case 1:
      return tiles_of<uint8_t>(tiles, stream);
    case 2:
      return tiles_of<uint16_t>(tiles, stream);
    case 4:
      return tiles_of<uint32_t>(tiles, stream);
    case 8:
      return tiles_of<uint64_t>(tiles, stream);
    default:
      return tiles_of<Wide>(tiles, stream);
  }
}

const char* launch_mask_tokens(const TokenBatch& batch, void* stream) {
  const unsigned blocks = blocks_for(batch.batch * batch.length, kThreads);
  mask_tokens_kernel<<<blocks, kThreads, 0, on(stream)>>>(batch);
  return launched();
}

#define FASTSSL_LAUNCH_PLAN(Plan)                                                         \
  const char* launch_plan(const Plan& plan, const PlanBatch& batch, const Layout& layout, \
                          void* scratch, void* stream) {                                  \
    return plan_of(plan, batch, layout, scratch, stream);                                 \
  }
FASTSSL_LAUNCH_PLAN(RandomPlan)
FASTSSL_LAUNCH_PLAN(BlockPlan)
FASTSSL_LAUNCH_PLAN(InversePlan)
FASTSSL_LAUNCH_PLAN(MultiblockPlan)

}  // namespace patch
}  // namespace fastssl
