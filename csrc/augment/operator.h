// What the operators check and take apart in the same way on every device. Values on a GPU are not
// looked at: that would wait for it.
#pragma once

#include <initializer_list>
#include <tuple>
#include <vector>

#include "augment/augment.h"
#include "augment/draw.h"
#include "common/stable.h"

namespace fastssl {
namespace augment {

constexpr int kSettings = 5;  // numbers for each view
constexpr int64_t kMostTaps = 1025;
constexpr int64_t kMostSide = int64_t(1) << 31;

inline bool is_packed(const Tensor& x, ScalarType type, const Tensor& like) {
  return x.scalar_type() == type && x.is_contiguous() && x.device() == like.device();
}

inline void check_shapes(const std::optional<Tensor>& shapes, int64_t batch, const Tensor& like) {
  STD_TORCH_CHECK(!shapes || (is_packed(*shapes, ScalarType::Long, like) && shapes->dim() == 2 &&
                              shapes->size(0) == batch && shapes->size(1) == 3),
                  "shapes must be int64 [B, 3], contiguous, where the images are");
}

inline void check_draw(const Tensor& sample_ids, const std::optional<Tensor>& shapes,
                       int64_t height, int64_t width, const std::optional<Tensor>& step,
                       const std::vector<double>& recipes, int64_t views) {
  STD_TORCH_CHECK(sample_ids.dim() == 1 && is_packed(sample_ids, ScalarType::Long, sample_ids),
                  "sample_ids must be int64 [B], contiguous");
  check_shapes(shapes, sample_ids.size(0), sample_ids);
  STD_TORCH_CHECK(shapes || (0 < height && height < kMostSide && 0 < width && width < kMostSide),
                  "height and width must be positive and fit 32 bits");
  STD_TORCH_CHECK(!step || (is_packed(*step, ScalarType::Long, sample_ids) && step->numel() == 1),
                  "step must be one int64 where sample_ids are");
  STD_TORCH_CHECK(views > 0 && int64_t(recipes.size()) == views * kRecipeNumbers,
                  "recipes must hold ", kRecipeNumbers, " numbers for each view");
}

using DrawnTensors = std::tuple<Tensor, Tensor, Tensor, Tensor>;

inline DrawnTensors empty_drawn(const Tensor& sample_ids, int64_t views) {
  const int64_t batch = sample_ids.numel();
  const auto empty = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(sample_ids, shape, type);
  };
  return {empty({4, views, batch}, ScalarType::Int), empty({5, views, batch}, ScalarType::Bool),
          empty({views, batch, 4}, ScalarType::Char), empty({5, views, batch}, ScalarType::Float)};
}

inline Params params_of(const Tensor& geometry, const Tensor& gates, const Tensor& order,
                        const Tensor& factors) {
  return {static_cast<int32_t*>(geometry.mutable_data_ptr()),
          static_cast<bool*>(gates.mutable_data_ptr()),
          static_cast<int8_t*>(order.mutable_data_ptr()),
          static_cast<float*>(factors.mutable_data_ptr()),
          geometry.size(1),
          geometry.size(2)};
}

inline Params params_of(const DrawnTensors& drawn) {
  return params_of(std::get<0>(drawn), std::get<1>(drawn), std::get<2>(drawn), std::get<3>(drawn));
}

// The arguments of augment_apply, checked.
struct Call {
  Params params;
  Image images;  // the first one; its size is that of all where there are no shapes
  int64_t image_stride = 0;
  const int64_t* shapes = nullptr;  // [B, 3]: offset, height, width
  int64_t elements;
  std::vector<Settings> settings;
  std::vector<Output> outputs;
  std::vector<int64_t> output_strides;  // from sample to sample
  Semantics semantics;
  int32_t channels;
  float scale[3], shift[3];

  Call(const Tensor& x, const std::optional<Tensor>& shapes_, const Tensor& geometry,
       const Tensor& gates, const Tensor& order, const Tensor& factors,
       const std::vector<int64_t>& numbers, const std::vector<double>& mean,
       const std::vector<double>& std, int64_t semantics_, const std::vector<Tensor>& out)
      : params(params_of(geometry, gates, order, factors)), elements(x.numel()) {
    const int64_t views = params.views, batch = params.batch;
    const auto packed = [&](const Tensor& t, ScalarType type, int64_t count) {
      return t.dim() == 3 && t.numel() == count * views * batch && is_packed(t, type, x);
    };
    STD_TORCH_CHECK(views > 0 && batch > 0 && packed(geometry, ScalarType::Int, 4) &&
                        packed(gates, ScalarType::Bool, 5) && packed(order, ScalarType::Char, 4) &&
                        packed(factors, ScalarType::Float, 5),
                    "parameters must be contiguous, of one number of views and samples, and where "
                    "the images are");
    STD_TORCH_CHECK(int64_t(out.size()) == views, "out must hold one tensor for each view");
    STD_TORCH_CHECK(0 <= semantics_ && semantics_ <= 2, "semantics must be 0, 1 or 2");
    STD_TORCH_CHECK(int64_t(numbers.size()) == views * kSettings, "settings must hold ", kSettings,
                    " numbers for each view");
    semantics = Semantics(semantics_);
    read_images(x, shapes_);
    for (int64_t v = 0; v < views; ++v) {
      read_output(out[size_t(v)], x);
      read_settings(out[size_t(v)], numbers.data() + v * kSettings);
    }
    read_normalisation(mean, std);
  }

  Job job(int64_t view, int64_t sample) const {
    Job job{image(sample),
            settings[size_t(view)],
            params.get(view, sample),
            outputs[size_t(view)],
            semantics,
            channels,
            {},
            {}};
    const int64_t size = job.output.type == OutputType::kFloat32 ? 4
                         : job.output.type == OutputType::kUint8 ? 1
                                                                 : 2;
    job.output.data =
        static_cast<char*>(job.output.data) + sample * output_strides[size_t(view)] * size;
    for (int c = 0; c < 3; ++c) job.scale[c] = scale[c];
    for (int c = 0; c < 3; ++c) job.shift[c] = shift[c];
    return job;
  }

  // On the CPU only: every crop lies inside its image, and the image inside the tensor.
  void check_crops() const {
    for (int64_t b = 0; b < params.batch; ++b) {
      if (shapes) {
        const int64_t *s = shapes + 3 * b, most = elements / channels;
        STD_TORCH_CHECK(s[0] >= 0 && s[1] > 0 && s[2] > 0 && s[1] <= most / s[2] &&
                            s[0] <= elements - channels * s[1] * s[2],
                        "shapes: image ", b, " does not lie inside the packed data");
      }
      const Image one = image(b);
      for (int64_t v = 0; v < params.views; ++v) {
        const Drawn d = params.get(v, b);
        STD_TORCH_CHECK(d.top >= 0 && d.left >= 0 && d.height > 0 && d.width > 0 &&
                            int64_t(d.top) + d.height <= one.height &&
                            int64_t(d.left) + d.width <= one.width,
                        "the crop of view ", v, " of image ", b, " is not inside the image");
      }
    }
  }

 private:
  Image image(int64_t sample) const {
    Image one = images;
    int64_t offset = sample * image_stride;
    if (shapes) {
      const int64_t* s = shapes + 3 * sample;
      offset = s[0];
      one.height = s[1];
      one.width = s[2];
      one.channel_stride = s[1] * s[2];
      one.row_stride = s[2];
    }
    one.data = static_cast<const char*>(one.data) + offset * (one.is_float ? 4 : 1);
    return one;
  }

  void read_images(const Tensor& x, const std::optional<Tensor>& shapes_) {
    const bool is_float = x.scalar_type() == ScalarType::Float;
    STD_TORCH_CHECK(is_float || x.scalar_type() == ScalarType::Byte,
                    "images must be uint8 or float32");
    check_shapes(shapes_, params.batch, x);
    if (shapes_) {
      STD_TORCH_CHECK(x.dim() == 1 && x.is_contiguous(), "packed images must be 1-D, contiguous");
      shapes = static_cast<const int64_t*>(shapes_->const_data_ptr());
      images = {x.const_data_ptr(), is_float, 0, 0, 0, 0, 1};
      return;
    }
    STD_TORCH_CHECK(x.dim() == 4 && x.size(0) == params.batch && x.numel() > 0,
                    "images must be [B, C, H, W], one for each sample");
    images = {x.const_data_ptr(), is_float,    x.size(2),  x.size(3),
              x.stride(1),        x.stride(2), x.stride(3)};
    image_stride = x.stride(0);
    channels = int32_t(x.size(1));
  }

  void read_output(const Tensor& out, const Tensor& x) {
    const bool first = outputs.empty();
    if (first && shapes) channels = out.dim() == 4 ? int32_t(out.size(1)) : 0;
    STD_TORCH_CHECK(channels == 1 || channels == 3, "images must have 1 or 3 channels");
    STD_TORCH_CHECK(out.dim() == 4 && out.size(0) == params.batch && out.size(1) == channels &&
                        out.numel() > 0 && out.device() == x.device(),
                    "each tensor of out must be [B, C, h, w] where the images are");
    OutputType type = OutputType::kFloat32;
    switch (out.scalar_type()) {
      case ScalarType::Float:
        break;
      case ScalarType::BFloat16:
        type = OutputType::kBFloat16;
        break;
      case ScalarType::Half:
        type = OutputType::kFloat16;
        break;
      case ScalarType::Byte:
        type = OutputType::kUint8;
        break;
      default:
        STD_TORCH_CHECK(false, "out must be float32, bfloat16, float16 or uint8");
    }
    STD_TORCH_CHECK(first || type == outputs[0].type, "the tensors of out must have one dtype");
    for (int d = 0; d < 4; ++d) {
      STD_TORCH_CHECK(out.size(d) == 1 || out.stride(d) > 0, "out must not overlap itself");
    }
    const int64_t width = out.size(3);
    const int64_t pixel = width > 1 ? out.stride(3) : out.size(2) > 1 ? out.stride(2) : 1;
    STD_TORCH_CHECK(out.size(2) == 1 || out.stride(2) == width * pixel,
                    "each tensor of out must have its rows one after the other");
    outputs.push_back({out.mutable_data_ptr(), type, pixel, out.stride(1)});
    output_strides.push_back(out.stride(0));
  }

  void read_settings(const Tensor& out, const int64_t* n) {
    const int64_t height = out.size(2), width = out.size(3), taps = n[3];
    STD_TORCH_CHECK(0 <= taps && taps <= kMostTaps && taps / 2 < std::min(height, width) &&
                        (taps % 2 == 1 || (taps == 0 && semantics == Semantics::kPil)),
                    "blur taps must be odd and reach less far than a view's side");
    settings.push_back({int32_t(height), int32_t(width), n[0] != 0, n[1] != 0, n[2] != 0,
                        int32_t(taps), int32_t(n[4])});
  }

  void read_normalisation(const std::vector<double>& mean, const std::vector<double>& std) {
    STD_TORCH_CHECK(int64_t(mean.size()) == channels && int64_t(std.size()) == channels,
                    "mean and std must have one number for each channel");
    const double top = semantics == Semantics::kTvFloat ? 1 : 255;
    for (size_t c = 0; c < 3; ++c) {
      scale[c] = c < mean.size() ? float(1 / (top * std[c])) : 0;
      shift[c] = c < mean.size() ? float(-mean[c] / std[c]) : 0;
    }
  }
};

}  // namespace augment
}  // namespace fastssl
