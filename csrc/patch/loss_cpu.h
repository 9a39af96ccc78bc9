// The loss of one patch and its gradient; the target lives in scratch memory only.
#pragma once

#include "patch/pixels_cpu.h"

namespace fastssl {
namespace patch {
namespace {

template <typename T>
struct LossScratch {
  T *pixels, *target, *pred, *gradient;  // `width` each
};

// What turns pixels of channel c into the target: (x - centre) * scale + shift.
template <typename T>
inline void make_target(const LossJob& job, int64_t b, int64_t l, const LossScratch<T>& s) {
  const Images& images = job.images;
  const int64_t channels = images.channels, area = images.area(), width = images.width();
  const bool planar = job.order == Order::kCpq || channels == 1;
  T* pixels = planar ? s.target : s.pixels;
  load_patch<T>(images, b, l, pixels);
  if (!job.norm_pix) {
    for (int64_t c = 0; c < channels; ++c) {
      affine<T>(pixels + c * area, area, T(job.scale[c]), T(job.shift[c]));
    }
  } else {
    // Scratch for a few numbers of each channel: the prediction's is not in use yet.
    Moments<T>* found = reinterpret_cast<Moments<T>*>(s.gradient + width);
    const double n = double(area);
    double mean = 0, squares = 0;
    for (int64_t c = 0; c < channels; ++c) {
      found[c] = moments<T>(pixels + c * area, area, images.is_uint8);
      const Moments<T>& m = found[c];
      mean += (double(m.centre) + m.about.first / n) * job.scale[c] + job.shift[c];
    }
    mean /= double(channels);
    const auto spread = [&](const Moments<T>& m) {
      return greatest(m.about.second - m.about.first * m.about.first / n, 0.0);
    };
    for (int64_t c = 0; c < channels; ++c) {
      const Moments<T>& m = found[c];
      const double own = (double(m.centre) + m.about.first / n) * job.scale[c] + job.shift[c];
      squares += job.scale[c] * job.scale[c] * spread(m) + n * (own - mean) * (own - mean);
    }
    double factor = 1 / square_root(squares / double(width - 1) + 1e-6);
    for (int64_t c = 0; c < channels; ++c) {
      const Moments<T>& m = found[c];
      if (job.statistics == Statistics::kPatchChannel) {
        const double var = job.scale[c] * job.scale[c] * spread(m) / (n - 1);
        factor = 1 / (square_root(var) + 1e-6);
        mean = (double(m.centre) + m.about.first / n) * job.scale[c] + job.shift[c];
      }
      const T scale = T(job.scale[c] * factor);
      const T shift = T((double(m.centre) * job.scale[c] + job.shift[c] - mean) * factor);
      T* x = pixels + c * area;
      for (int64_t i = 0; i < area; ++i) x[i] = (x[i] - m.centre) * scale + shift;
    }
  }
  if (!planar) interleave(s.pixels, channels, area, s.target);
}

// Adds up in lanes, and those in float64 every few vectors: what is small beside the sum counts.
template <typename T>
class Total {
 public:
  void add(Vec<T> x) {
    lanes_ += x;
    if (++added_ == 16) flush();
  }
  double value() {
    flush();
    return lane_sum<double>(total_);
  }

 private:
  void flush() {
    T lanes[kLanes<T>];
    store<T>(lanes, lanes_);
    for (int k = 0; k < kLanes<T>; k += kLanes<double>) total_ += load_double<T>(lanes + k);
    lanes_ = Vec<T>{};
    added_ = 0;
  }

  Vec<T> lanes_{};
  Vec<double> total_{};
  int added_ = 0;
};

template <typename T>
inline Vec<T> magnitude(Vec<T> x) {
  return x < 0 ? -x : x;
}
template <typename T>
inline Vec<T> sign(Vec<T> x) {
  return x > 0 ? broadcast<T>(1) : x < 0 ? broadcast<T>(-1) : x;  // zero and NaN stay
}

// (loss, derivative) of the difference of a prediction and its target, in lanes.
template <typename T>
struct Mse {
  static Vec<T> loss(Vec<T> d) { return d * d; }
  static Vec<T> derivative(Vec<T> d) { return d + d; }
};
template <typename T>
struct L1 {
  static Vec<T> loss(Vec<T> d) { return magnitude<T>(d); }
  static Vec<T> derivative(Vec<T> d) { return sign<T>(d); }
};
template <typename T>
struct SmoothL1 {
  static Vec<T> loss(Vec<T> d) {
    const Vec<T> m = magnitude<T>(d);
    return m < 1 ? T(0.5) * d * d : m - T(0.5);
  }
  static Vec<T> derivative(Vec<T> d) { return magnitude<T>(d) < 1 ? d : sign<T>(d); }
};

template <typename T, class F>
inline void in_vectors(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) f(i, kLanes<T>);
  if (i < count) f(i, int(count - i));
}

template <typename T>
inline Vec<T> load_some(const T* from, int count) {
  if (count == kLanes<T>) return load<T>(from);
  Vec<T> v{};
  for (int k = 0; k < count; ++k) v[k] = from[k];
  return v;
}
template <typename T>
inline void store_some(T* to, Vec<T> v, int count) {
  if (count == kLanes<T>) return store<T>(to, v);
  for (int k = 0; k < count; ++k) to[k] = v[k];
}

// The mean over `count` numbers; with `gradient`, that of the mean times `weight`. Lanes beyond the
// end are zero in both, and so are their losses.
template <template <typename> class F, typename T>
inline double compare(const T* pred, const T* target, int64_t count, double weight, T* gradient) {
  Total<T> total;
  if (gradient == nullptr) {
    in_vectors<T>(count, [&](int64_t i, int n) {
      total.add(F<T>::loss(load_some(pred + i, n) - load_some(target + i, n)));
    });
  } else {
    const T factor = T(weight / double(count));
    in_vectors<T>(count, [&](int64_t i, int n) {
      const Vec<T> d = load_some(pred + i, n) - load_some(target + i, n);
      total.add(F<T>::loss(d));
      store_some<T>(gradient + i, F<T>::derivative(d) * factor, n);
    });
  }
  return total.value() / double(count);
}

// 1 - the cosine of both rows, each norm at least 1e-8.
template <typename T>
inline double compare_angle(const T* pred, const T* target, int64_t count, double weight,
                            T* gradient) {
  constexpr double kLeast = 1e-8;
  Total<T> products, preds, targets;
  in_vectors<T>(count, [&](int64_t i, int n) {
    const Vec<T> p = load_some(pred + i, n), t = load_some(target + i, n);
    products.add(p * t);
    preds.add(p * p);
    targets.add(t * t);
  });
  const double norm = square_root(preds.value());
  const double p = greatest(norm, kLeast), t = greatest(square_root(targets.value()), kLeast);
  const double cosine = products.value() / (p * t);
  if (gradient != nullptr) {
    const T along = T(norm > 0 ? weight * cosine / (p * norm) : 0), across = T(-weight / (p * t));
    in_vectors<T>(count, [&](int64_t i, int n) {
      const Vec<T> x = load_some(pred + i, n) * along + load_some(target + i, n) * across;
      store_some<T>(gradient + i, x, n);
    });
  }
  return 1 - cosine;
}

template <typename T>
inline double compare(Kind kind, const T* pred, const T* target, int64_t count, double weight,
                      T* gradient) {
  switch (kind) {
    case Kind::kL1:
      return compare<L1, T>(pred, target, count, weight, gradient);
    case Kind::kSmoothL1:
      return compare<SmoothL1, T>(pred, target, count, weight, gradient);
    case Kind::kCosine:
      return compare_angle<T>(pred, target, count, weight, gradient);
    default:
      return compare<Mse, T>(pred, target, count, weight, gradient);
  }
}

template <typename T>
inline bool loss_rows(const LossJob& job, int64_t b, int64_t begin, int64_t end, void* scratch,
                      double* sum) {
  const int64_t width = job.images.width(), length = job.plan.length;
  const int64_t rows = job.removed_only ? length - job.plan.keep : length;
  const int64_t kept = job.plan.kept(b), bytes = bytes_of(job.dtype);
  T* memory = static_cast<T*>(scratch);
  const LossScratch<T> s{memory, memory + width, memory + 2 * width, memory + 3 * width};
  const bool direct = job.dtype == kDType<T>;
  *sum = 0;
  for (int64_t row = begin; row < end; ++row) {
    char* gradient = static_cast<char*>(job.gradient);
    if (gradient != nullptr) gradient += (b * rows + row) * width * bytes;
    int64_t patch = row;
    if (job.removed_only) {
      patch = job.plan.shuffle[b * length + job.plan.keep + row];
      if (uint64_t(patch) >= uint64_t(length)) return false;
    } else if (job.plan.restore[b * length + row] < kept) {
      if (gradient != nullptr) __builtin_memset(gradient, 0, size_t(width * bytes));
      continue;
    }
    make_target<T>(job, b, patch, s);
    const int64_t offset = b * job.pred_stride[0] + row * job.pred_stride[1];
    const T* pred = static_cast<const T*>(job.pred) + offset;
    if (!direct || job.pred_stride[2] != 1) {
      load_row<T>(job.pred, job.dtype, offset, job.pred_stride[2], width, s.pred);
      pred = s.pred;
    }
    T* out = gradient == nullptr ? nullptr : direct ? reinterpret_cast<T*>(gradient) : s.gradient;
    *sum += compare<T>(job.kind, pred, s.target, width, job.upstream / job.count, out);
    if (gradient != nullptr && !direct) store_row<T>(out, width, job.dtype, gradient, 0);
  }
  return true;
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
