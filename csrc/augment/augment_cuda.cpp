// CUDA operators: check what protects memory, allocate, launch on the current stream, register.
// Nothing here waits for the device.
#include <tuple>
#include <vector>

#include "augment/launch_cuda.h"
#include "augment/operator.h"
#include "common/stable.h"

namespace fastssl {
namespace augment {
namespace {

void* current_stream(int32_t device) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                  "no CUDA stream");
  return stream;
}

void check(const char* error) { STD_TORCH_CHECK(error == nullptr, "augment: CUDA: ", error); }

DrawnTensors augment_draw(const Tensor& sample_ids, const std::optional<Tensor>& shapes,
                          int64_t height, int64_t width, const std::optional<Tensor>& step,
                          int64_t step_value, int64_t seed, const std::vector<double>& recipes,
                          int64_t views) {
  check_draw(sample_ids, shapes, height, width, step, recipes, views);
  const int64_t batch = sample_ids.numel();
  const int32_t device = sample_ids.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const DrawnTensors drawn = empty_drawn(sample_ids, views);
  if (batch == 0) return drawn;
  const auto values = [](const std::optional<Tensor>& x) {
    return x ? static_cast<const int64_t*>(x->const_data_ptr()) : nullptr;
  };
  DrawBatch d{};
  d.params = params_of(drawn);
  d.ids = static_cast<const int64_t*>(sample_ids.const_data_ptr());
  d.shapes = values(shapes);
  d.step = values(step);
  d.height = height;
  d.width = width;
  d.step_value = step_value;
  d.seed = seed;
  void* stream = current_stream(device);
  for (d.first = 0; d.first < views; d.first += kMostViews) {
    d.views = std::min<int64_t>(kMostViews, views - d.first);
    std::copy_n(recipes.data() + d.first * kRecipeNumbers, d.views * kRecipeNumbers, d.recipe[0]);
    check(launch_draw(device, d, stream));
  }
  return drawn;
}

void augment_apply(const Tensor& images, const std::optional<Tensor>& shapes,
                   const Tensor& geometry, const Tensor& gates, const Tensor& order,
                   const Tensor& factors, const std::vector<int64_t>& settings,
                   const std::vector<double>& mean, const std::vector<double>& std,
                   int64_t semantics, const std::vector<Tensor>& out) {
  const Call call(images, shapes, geometry, gates, order, factors, settings, mean, std, semantics,
                  out);
  const int32_t device = images.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Device offers;
  check(find_device(device, &offers));
  void* stream = current_stream(device);
  Batch batch;
  for (int64_t first = 0; first < call.params.views; first += kMostViews) {
    const int64_t count = std::min<int64_t>(kMostViews, call.params.views - first);
    const int64_t bytes = make_batch(call, first, count, offers, &batch);
    std::optional<Tensor> scratch;
    if (bytes > 0) scratch = torch::stable::new_empty(images, {bytes}, ScalarType::Byte);
    check(launch_apply(device, batch, call.semantics,
                       scratch ? scratch->mutable_data_ptr() : nullptr, stream));
  }
}

}  // namespace
}  // namespace augment

STABLE_TORCH_LIBRARY_IMPL(fastssl, CUDA, m) {
  m.impl("augment_draw", TORCH_BOX(&augment::augment_draw));
  m.impl("augment_apply", TORCH_BOX(&augment::augment_apply));
}

}  // namespace fastssl
