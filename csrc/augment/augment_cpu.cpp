// CPU operators: check what protects memory, share views among threads, register.
#include <atomic>
#include <string>
#include <tuple>
#include <vector>

#include "augment/augment.h"
#include "augment/draw.h"
#include "augment/operator.h"
#include "common/cpu.h"
#include "common/memory.h"
#include "common/stable.h"

namespace fastssl {
namespace augment {
namespace {

const Kernels& kernels() { return FASTSSL_SELECT(kKernels); }

DrawnTensors augment_draw(const Tensor& sample_ids, const std::optional<Tensor>& shapes,
                          int64_t height, int64_t width, const std::optional<Tensor>& step,
                          int64_t step_value, int64_t seed, const std::vector<double>& recipes,
                          int64_t views) {
  check_draw(sample_ids, shapes, height, width, step, recipes, views);
  const int64_t batch = sample_ids.numel();
  const DrawnTensors drawn = empty_drawn(sample_ids, views);
  const Params params = params_of(drawn);
  const int64_t* ids = static_cast<const int64_t*>(sample_ids.const_data_ptr());
  const int64_t* sizes = shapes ? static_cast<const int64_t*>(shapes->const_data_ptr()) : nullptr;
  if (step) step_value = *static_cast<const int64_t*>(step->const_data_ptr());
  const Recipe* recipe = reinterpret_cast<const Recipe*>(recipes.data());
  torch::stable::parallel_for(0, views * batch, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t v = i / batch, b = i % batch;
      const Draws draws{uint64_t(seed), uint64_t(step_value), uint64_t(ids[b]), Purpose::kAugment,
                        uint32_t(v)};
      params.set(v, b,
                 draw(recipe[v], draws, sizes ? sizes[3 * b + 1] : height,
                      sizes ? sizes[3 * b + 2] : width));
    }
  });
  return drawn;
}

void augment_apply(const Tensor& images, const std::optional<Tensor>& shapes,
                   const Tensor& geometry, const Tensor& gates, const Tensor& order,
                   const Tensor& factors, const std::vector<int64_t>& settings,
                   const std::vector<double>& mean, const std::vector<double>& std,
                   int64_t semantics, const std::vector<Tensor>& out) {
  const Call call(images, shapes, geometry, gates, order, factors, settings, mean, std, semantics,
                  out);
  call.check_crops();
  const int64_t tasks = call.params.views * call.params.batch;
  double pixels = 0;
  for (const Tensor& view : out) {
    pixels += double(view.numel());
    ask_for_large_pages(view);
  }
  // A pixel costs tens of operations.
  const int64_t workers = worker_count(32 * pixels, tasks);
  const Kernels& k = kernels();
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  run_workers(workers, [&](int64_t) {
    Scratch scratch;
    // All views of an image in a row: it is read from memory once.
    for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) {
      const Job job = call.job(i % call.params.views, i / call.params.views);
      void* memory = scratch.at_least(k.scratch_bytes(job));
      if (memory == nullptr) {
        failed = true;
        return;
      }
      k.view(job, memory);
    }
  });
  STD_TORCH_CHECK(!failed, "augment: out of memory for the scratch of a view");
}

}  // namespace
}  // namespace augment

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("augment_draw", TORCH_BOX(&augment::augment_draw));
  m.impl("augment_apply", TORCH_BOX(&augment::augment_apply));
}

}  // namespace fastssl
