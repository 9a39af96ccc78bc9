// What the CUDA library was built from, in plain C: readable through ctypes once it is loaded.
#include <cuda_runtime_api.h>

#define FASTSSL_EXPORT extern "C" __attribute__((visibility("default")))

// As CUDA counts: 13000 is 13.0.
FASTSSL_EXPORT int fastssl_cuda_runtime_version() { return CUDART_VERSION; }

// As CMake writes them, separated by spaces: "80-virtual 90a-real".
FASTSSL_EXPORT const char* fastssl_cuda_architectures() { return FASTSSL_CUDA_ARCHITECTURES; }
