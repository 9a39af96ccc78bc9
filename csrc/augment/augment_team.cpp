// The GPU's algorithm run on the CPU by a team whose threads take turns: for tests, and in
// development builds alone.
#include <vector>

#include "augment/launch_cuda.h"
#include "augment/operator.h"
#include "common/host_team.h"
#include "common/stable.h"

namespace fastssl {
namespace augment {
namespace {

template <Semantics semantics, class Source>
void run(const Batch& batch, HostStage* stage, char* scratch) {
  for (int32_t g = 0; g < batch.groups; ++g) {
    const Group& group = batch.group[g];
    const int32_t teams = kBlockThreads / group.threads;
    for (int64_t i = 0; i < group.blocks * teams; ++i) {
      // 16-byte alignment as on the device, and nothing of use in it at first.
      std::vector<int64_t> shared(size_t(batch.shared_bytes / teams / 8 + 2), -1);
      char* share =
          reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 15) / 16 * 16);
      stage->run([&](const HostTeam& team) {
        run_group<semantics, Source>(team, batch, group, int32_t(i / teams), int32_t(i % teams),
                                     share, scratch, [] {});
      });
    }
  }
}

template <class Source>
void run(const Batch& batch, Semantics semantics, HostStage* stage, char* scratch) {
  switch (semantics) {
    case Semantics::kTvFloat:
      return run<Semantics::kTvFloat, Source>(batch, stage, scratch);
    case Semantics::kPil:
      return run<Semantics::kPil, Source>(batch, stage, scratch);
    default:
      return run<Semantics::kTvUint8, Source>(batch, stage, scratch);
  }
}

// As augment_apply; `order`: how threads take turns (common/host_team.h), `threads`: in a team,
// `shared_bytes`: what a block has of shared memory.
void augment_apply_team(const Tensor& images, const std::optional<Tensor>& shapes,
                        const Tensor& geometry, const Tensor& gates, const Tensor& order,
                        const Tensor& factors, const std::vector<int64_t>& settings,
                        const std::vector<double>& mean, const std::vector<double>& std,
                        int64_t semantics, const std::vector<Tensor>& out, int64_t turns,
                        int64_t threads, int64_t shared_bytes) {
  const Call call(images, shapes, geometry, gates, order, factors, settings, mean, std, semantics,
                  out);
  call.check_crops();
  const Device device{int32_t(shared_bytes), 2};
  HostStage stage(int32_t(threads), turns);
  Batch batch;
  for (int64_t first = 0; first < call.params.views; first += kMostViews) {
    const int64_t count = std::min<int64_t>(kMostViews, call.params.views - first);
    std::vector<int64_t> scratch(size_t(make_batch(call, first, count, device, &batch)) / 8 + 2,
                                 -1);
    char* at =
        reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch.data()) + 15) / 16 * 16);
    if (batch.images.is_float) {
      run<float>(batch, call.semantics, &stage, at);
    } else {
      run<uint8_t>(batch, call.semantics, &stage, at);
    }
  }
}

}  // namespace
}  // namespace augment

STABLE_TORCH_LIBRARY_FRAGMENT(fastssl, m) {
  m.def(
      "augment_apply_team(Tensor images, Tensor? shapes, Tensor geometry, Tensor gates, "
      "Tensor order, Tensor factors, int[] settings, float[] mean, float[] std, int semantics, "
      "Tensor(a!)[] out, int turns, int threads, int shared_bytes) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("augment_apply_team", TORCH_BOX(&augment::augment_apply_team));
}

}  // namespace fastssl
