/* A driver that answers everything, so that the real cuda-python can be seen to return something.
 * Only for `emulated_cuda.real`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { MEMORY_TYPE = 2, IS_MANAGED = 8, DEVICE_ORDINAL = 9, IS_IPC_CAPABLE = 10, IS_MAPPED = 13 };

int cuInit(unsigned flags) {
  (void)flags;
  return 0;
}

int cuDriverGetVersion(int *version) {
  *version = 13000;
  return 0;
}

int cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
  (void)pointer;
  switch (attribute) {
    case IS_MANAGED:
    case IS_IPC_CAPABLE:
    case IS_MAPPED: *(uint8_t *)value = 1; break;
    case MEMORY_TYPE:
    case DEVICE_ORDINAL: *(int *)value = 1; break;
    default: *(uint64_t *)value = 1;
  }
  return 0;
}

int cuMemGetAddressRange_v2(uint64_t *base, size_t *size, uint64_t pointer) {
  *base = pointer;
  *size = 1;
  return 0;
}

int cuGetErrorName(int error, const char **name) {
  (void)error;
  *name = "name";
  return 0;
}

int cuGetErrorString(int error, const char **text) {
  return cuGetErrorName(error, text);
}

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *result) {
  (void)version, (void)flags;
  static void *own;
  if (own == NULL) own = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  char newer[128];
  snprintf(newer, sizeof newer, "%s_v2", name);
  *function = dlsym(own, newer);
  if (*function == NULL) *function = dlsym(own, name);
  if (result != NULL) *result = *function != NULL ? 0 : 1;
  return *function != NULL ? 0 : 500;
}
