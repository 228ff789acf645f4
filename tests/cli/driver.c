/* An NVIDIA driver without a card, for tests of how devices are chosen. The environment says what it claims: its CUDA
 * version in DRIVER_VERSION, its GPUs in DRIVER_GPUS, all of them Hopper. Every allocation is refused. */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100, MAJOR = 75, MINOR = 76 };

static int number(const char *name) {
    const char *value = getenv(name);
    return value ? atoi(value) : 0;
}

int cuInit(unsigned flags) { return number("DRIVER_GPUS") ? SUCCESS : NO_DEVICE; }
int cuDriverGetVersion(int *version) { *version = number("DRIVER_VERSION"); return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = number("DRIVER_GPUS"); return SUCCESS; }
int cuDeviceGet(int *device, int index) { *device = index; return SUCCESS; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == MAJOR ? 9 : which == MINOR ? 0 : 1;
    return SUCCESS;
}
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Pretended GPU", length); return SUCCESS; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)8 << 30; return SUCCESS; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = context; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int device) { return SUCCESS; }
int cuCtxSetCurrent(void *context) { return SUCCESS; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = stream; return SUCCESS; }
int cuStreamSynchronize(void *stream) { return SUCCESS; }
int cuStreamDestroy_v2(void *stream) { return SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { *event = event; return SUCCESS; }
int cuEventDestroy_v2(void *event) { return SUCCESS; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 0; return cuDeviceTotalMem_v2(total, 0); }
int cuMemAlloc_v2(void **address, size_t bytes) { return OUT_OF_MEMORY; }
int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) { return OUT_OF_MEMORY; }
int cuGetErrorString(int error, const char **text) {
    *text = error == NO_DEVICE ? "no CUDA-capable device is detected" : "out of memory";
    return SUCCESS;
}
