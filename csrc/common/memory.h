// Memory of CPU operators: scratch of a thread, and pages of large results.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <memory>

#include "common/stable.h"

namespace fastssl {
namespace {

// Memory of one thread: grows to what its largest view needs.
class Scratch {
 public:
  void* at_least(int64_t bytes) {
    if (bytes > size_) {
      memory_.reset(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)));
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  int64_t size_ = 0;
};

// Results of many megabytes that the allocator has just got: written in small pages, each of which
// the system clears when it is first touched, they took as long as making them. Large pages are 512
// times fewer. Memory that is in use already stays as it is.
inline void ask_for_large_pages(const Tensor& t) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t data = reinterpret_cast<uintptr_t>(t.mutable_data_ptr());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage;
  const uintptr_t end = (data + uintptr_t(t.numel()) * t.element_size()) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)t;
#endif
}

}  // namespace
}  // namespace fastssl
