// Threads that work on one thing together. A block-level algorithm is a template over its team: a
// part of a thread block in CUDA, and in tests a HostTeam (common/host_team.h).
//
// Items are dealt out by `for_each`; what other threads wrote may be read after `sync` and no
// earlier; `sum` adds up what each thread has, always in the same order, and is a `sync`, too. All
// threads of a team call the same things in the same order.
#pragma once

#include "common/portable.h"

// For functions that run inside a team, and call it.
#ifdef __CUDACC__
#define FASTSSL_TEAM __device__
#define FASTSSL_COLD __device__ __noinline__  // with registers of its own
#define FASTSSL_UNROLL _Pragma("unroll")      // what a loop indexes can be in registers then
#define FASTSSL_ROLLED _Pragma("unroll 1")    // registers are scarcer than instructions
#define FASTSSL_TWICE _Pragma("unroll 2")     // what one pass hands to the next need not move
#else
#define FASTSSL_TEAM
#define FASTSSL_COLD
#define FASTSSL_UNROLL
#define FASTSSL_ROLLED
#define FASTSSL_TWICE
#endif

namespace fastssl {
namespace {

// How a thread walks over the items of rows of `columns` each: divides once, not for every item.
struct Walk {
  int32_t columns, down, across, row, column;

  FASTSSL_TEAM Walk(int32_t rank, int32_t size, int32_t columns_)
      : columns(columns_),
        down(int32_t(uint32_t(size) / uint32_t(columns_))),
        across(size - down * columns_),
        row(int32_t(uint32_t(rank) / uint32_t(columns_))),
        column(rank - row * columns_) {}

  // f(row, column), neighbours in a row side by side.
  template <class F>
  FASTSSL_TEAM void for_each(int32_t rows, const F& f) const {
    int32_t y = row, x = column;
    while (y < rows) {
      f(y, x);
      y += down;
      x += across;
      if (x >= columns) {
        x -= columns;
        ++y;
      }
    }
  }
};

struct Team {
  int32_t rank, size;

  template <class F>
  FASTSSL_TEAM void for_each(int64_t count, const F& f) const {
    for (int64_t i = rank; i < count; i += size) f(i);
  }

  FASTSSL_TEAM Walk walk(int32_t columns) const { return Walk(rank, size, columns); }

  template <class F>
  FASTSSL_TEAM void for_each(int32_t rows, int32_t columns, const F& f) const {
    walk(columns).for_each(rows, f);
  }
};

#ifdef __CUDACC__
// `size` threads of a block, whole warps of them. Teams of a block have barriers 0 to 15.
struct CudaTeam : Team {
  int32_t barrier;
  int64_t* partial;  // in shared memory, one for each warp

  __device__ void sync() const {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(size) : "memory");
  }

  __device__ int64_t sum(int64_t x) const {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    if (rank % 32 == 0) partial[rank / 32] = x;
    sync();
    int64_t total = 0;
    for (int32_t warp = 0; warp < size / 32; ++warp) total += partial[warp];
    sync();
    return total;
  }

  __device__ double sum(double x) const {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    if (rank % 32 == 0) partial[rank / 32] = __double_as_longlong(x);
    sync();
    double total = 0;
    for (int32_t warp = 0; warp < size / 32; ++warp) total += __longlong_as_double(partial[warp]);
    sync();
    return total;
  }
};

// One warp, which needs no barrier of its block.
struct WarpTeam : Team {
  __device__ void sync() const { __syncwarp(); }

  template <class T>
  __device__ T sum(T x) const {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    sync();
    return x;
  }
};
#endif

}  // namespace
}  // namespace fastssl
