// Rows of tokens: gathered, put back, added up.
#pragma once

#include "patch/pixels_cpu.h"

namespace fastssl {
namespace patch {
namespace {

constexpr int64_t kChunk = 512;  // numbers converted at once, on the stack

template <typename T>
class TokenRows {
 public:
  explicit TokenRows(const TokensJob& job)
      : job_(job),
        out_bytes_(bytes_of(job.dtype)),
        direct_(job.x_dtype == kDType<T> && job.dtype == kDType<T> && job.x_stride[2] == 1),
        same_(job.x_dtype == job.dtype && job.x_stride[2] == 1) {}

  // Row `to` of `rows` of sample b: row `from` of x, plus row `place` of the positions.
  void copy(int64_t b, int64_t from, int64_t to, int64_t rows, int64_t place) const {
    const int64_t offset = b * job_.x_stride[0] + from * job_.x_stride[1], width = job_.width;
    char* out = output(b, to, rows);
    const T* pos = positions(place);
    if (same_ && pos == nullptr) {
      const char* x = static_cast<const char*>(job_.x) + offset * out_bytes_;
      __builtin_memcpy(out, x, size_t(width * out_bytes_));
    } else if (direct_) {
      add(static_cast<const T*>(job_.x) + offset, pos, width, reinterpret_cast<T*>(out));
    } else {
      T row[kChunk];
      for (int64_t at = 0; at < width; at += kChunk) {
        const int64_t count = width - at < kChunk ? width - at : kChunk;
        load_row<T>(job_.x, job_.x_dtype, offset + at * job_.x_stride[2], job_.x_stride[2], count,
                    row);
        if (pos != nullptr) add(row, pos + at, count, row);
        store_row<T>(row, count, job_.dtype, out, at);
      }
    }
  }

  void zero(int64_t b, int64_t to, int64_t rows) const {
    __builtin_memset(output(b, to, rows), 0, size_t(job_.width * out_bytes_));
  }

  // The mask token, or zeros, plus row `to` of the positions.
  void fill(int64_t b, int64_t to, int64_t rows) const {
    const T *token = static_cast<const T*>(job_.token), *pos = positions(to);
    if (token == nullptr && pos == nullptr) return zero(b, to, rows);
    char* out = output(b, to, rows);
    if (token == nullptr || pos == nullptr) {
      store_row<T>(token == nullptr ? pos : token, job_.width, job_.dtype, out, 0);
    } else if (job_.dtype == kDType<T>) {
      add(token, pos, job_.width, reinterpret_cast<T*>(out));
    } else {
      T row[kChunk];
      for (int64_t at = 0; at < job_.width; at += kChunk) {
        const int64_t count = job_.width - at < kChunk ? job_.width - at : kChunk;
        add(token + at, pos + at, count, row);
        store_row<T>(row, count, job_.dtype, out, at);
      }
    }
  }

 private:
  static void add(const T* a, const T* b, int64_t count, T* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = a[i] + b[i];
  }
  const T* positions(int64_t row) const {
    return job_.pos == nullptr ? nullptr : static_cast<const T*>(job_.pos) + row * job_.width;
  }
  char* output(int64_t b, int64_t row, int64_t rows) const {
    return static_cast<char*>(job_.out) + (b * rows + row) * job_.width * out_bytes_;
  }

  const TokensJob& job_;
  int64_t out_bytes_;
  bool direct_, same_;
};

template <typename T>
inline bool gather_rows(const TokensJob& job, int64_t b) {
  const TokenRows<T> tokens(job);
  const Plan& plan = job.plan;
  const int64_t rows = job.prefix + plan.keep, kept = plan.kept(b);
  for (int64_t row = 0; row < rows; ++row) {
    if (row < job.prefix) {
      tokens.copy(b, row, row, rows, row);
    } else if (row - job.prefix < kept) {
      const int64_t patch = plan.shuffle[b * plan.length + row - job.prefix];
      if (uint64_t(patch) >= uint64_t(plan.length)) return false;
      tokens.copy(b, job.prefix + patch, row, rows, job.prefix + patch);
    } else {
      tokens.zero(b, row, rows);
    }
  }
  return true;
}

template <typename T>
inline bool restore_rows(const TokensJob& job, int64_t b) {
  const TokenRows<T> tokens(job);
  const Plan& plan = job.plan;
  const int64_t rows = job.prefix + plan.length, kept = plan.kept(b);
  for (int64_t row = 0; row < rows; ++row) {
    int64_t from = row;
    if (row >= job.prefix) {
      const int64_t place = plan.restore[b * plan.length + row - job.prefix];
      if (place >= kept) {
        tokens.fill(b, row, rows);
        continue;
      }
      if (uint64_t(place) >= uint64_t(plan.keep)) return false;
      from = job.prefix + place;
    }
    tokens.copy(b, from, row, rows, row);
  }
  return true;
}

template <typename T>
inline void sum_removed_rows(const TokensJob& job, int64_t b, void* scratch, double* sum) {
  const Plan& plan = job.plan;
  const int64_t kept = plan.kept(b), width = job.width;
  T* total = static_cast<T*>(scratch);
  for (int64_t i = 0; i < width; ++i) total[i] = 0;
  for (int64_t l = 0; l < plan.length; ++l) {
    if (plan.restore[b * plan.length + l] < kept) continue;
    const int64_t offset = b * job.x_stride[0] + (job.prefix + l) * job.x_stride[1];
    if (job.x_dtype == kDType<T> && job.x_stride[2] == 1) {
      const T* x = static_cast<const T*>(job.x) + offset;
      for (int64_t i = 0; i < width; ++i) total[i] += x[i];
      continue;
    }
    T row[kChunk];
    for (int64_t at = 0; at < width; at += kChunk) {
      const int64_t count = width - at < kChunk ? width - at : kChunk;
      load_row<T>(job.x, job.x_dtype, offset + at * job.x_stride[2], job.x_stride[2], count, row);
      for (int64_t i = 0; i < count; ++i) total[at + i] += row[i];
    }
  }
  for (int64_t i = 0; i < width; ++i) sum[i] += double(total[i]);
}

}  // namespace
}  // namespace patch
}  // namespace fastssl
