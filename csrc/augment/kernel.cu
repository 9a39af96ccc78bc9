// The kernels: draws, one thread for each view of a sample, and views, one team for each.
#include <cuda_runtime_api.h>

#include "augment/launch_cuda.h"

namespace fastssl {
namespace augment {
namespace {

constexpr int64_t kMostBlocks = 0x7fffffff;
static_assert(sizeof(Batch) <= 4096 && sizeof(DrawBatch) <= 4096, "kernel arguments");

__global__ void draw_kernel(const __grid_constant__ DrawBatch d) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, samples = d.params.batch;
  if (i >= d.views * samples) return;
  const int64_t v = i / samples, b = i % samples;
  const Draws draws{uint64_t(d.seed), uint64_t(d.step ? *d.step : d.step_value), uint64_t(d.ids[b]),
                    Purpose::kAugment, uint32_t(d.first + v)};
  const int64_t height = d.shapes ? d.shapes[3 * b + 1] : d.height;
  const int64_t width = d.shapes ? d.shapes[3 * b + 2] : d.width;
  const Recipe& recipe = reinterpret_cast<const Recipe&>(d.recipe[v]);
  d.params.set(d.first + v, b, draw(recipe, draws, height, width));
}

template <Semantics semantics, class Source>
__global__ void __launch_bounds__(kBlockThreads, 1)
    apply_kernel(const __grid_constant__ Batch batch, char* scratch) {
  extern __shared__ __align__(16) char shared[];
  int32_t g = 0;
  int32_t block = int32_t(blockIdx.x);
  while (block >= batch.group[g].blocks) block -= int32_t(batch.group[g++].blocks);
  const Group& group = batch.group[g];
  const int32_t member = int32_t(threadIdx.x) / group.threads;
  char* share = shared + member * (batch.shared_bytes / (kBlockThreads / group.threads) / 16 * 16);
  CudaTeam team;
  team.rank = int32_t(threadIdx.x) % group.threads;
  team.size = group.threads;
  team.barrier = member;
  team.partial = reinterpret_cast<Desk*>(share)->partial;
  // As torch's own kernels do with an index out of bounds: the error comes up at the next
  // synchronisation.
  run_group<semantics, Source>(team, batch, group, block, member, share, scratch, [] { __trap(); });
}

using Kernel = void (*)(Batch, char*);

template <class Source>
Kernel kernel_for(Semantics semantics) {
  switch (semantics) {
    case Semantics::kTvFloat:
      return apply_kernel<Semantics::kTvFloat, Source>;
    case Semantics::kPil:
      return apply_kernel<Semantics::kPil, Source>;
    default:
      return apply_kernel<Semantics::kTvUint8, Source>;
  }
}

// An error that is told is told once: the next launch asks for the last one, and means its own.
const char* message(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace

const char* find_device(int32_t index, Device* out) {
  const cudaError_t error =
      cudaDeviceGetAttribute(&out->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (error != cudaSuccess) return message(error);
  return message(
      cudaDeviceGetAttribute(&out->multiprocessors, cudaDevAttrMultiProcessorCount, index));
}

const char* launch_draw(int32_t device, const DrawBatch& batch, void* stream) {
  constexpr int kThreads = 128;
  const int64_t blocks = (batch.views * batch.params.batch + kThreads - 1) / kThreads;
  if (blocks > kMostBlocks) return "a call has room for 2^31 blocks: give it fewer images";
  if (const cudaError_t error = cudaSetDevice(device)) return message(error);
  draw_kernel<<<unsigned(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(batch);
  return message(cudaGetLastError());
}

const char* launch_apply(int32_t device, const Batch& batch, Semantics semantics, void* scratch,
                         void* stream) {
  int64_t blocks = 0;
  for (int32_t g = 0; g < batch.groups; ++g) blocks += batch.group[g].blocks;
  if (blocks > kMostBlocks) return "a call has room for 2^31 blocks: give it fewer images";
  const Kernel kernel =
      batch.images.is_float ? kernel_for<float>(semantics) : kernel_for<uint8_t>(semantics);
  if (const cudaError_t error = cudaSetDevice(device)) return message(error);
  if (const cudaError_t error = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, batch.shared_bytes)) {
    return message(error);
  }
  kernel<<<unsigned(blocks), kBlockThreads, size_t(batch.shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(batch, static_cast<char*>(scratch));
  return message(cudaGetLastError());
}

}  // namespace augment
}  // namespace fastssl
