/* The driver's functions that the server looks up, with cudaGetDriverEntryPoint or in libcuda.so
 * (this library has a link of that name). */
#define _GNU_SOURCE
#include "emucuda.h"

#include <dlfcn.h>

enum { RANGE_START_ADDRESS = 11, RANGE_SIZE = 12 };

const char *cudaGetErrorString(status error);

status cuInit(unsigned flags) {
  (void)flags;
  return OK;
}

status cuGetErrorString(status error, const char **text) {
  *text = cudaGetErrorString(error);
  return OK;
}

status cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) {
  (void)device;
  *flags = 0;
  *is_active = 1;
  return OK;
}

status cuMemGetAddressRange(uint64_t *base, size_t *size, uint64_t pointer) {
  take_lock();
  allocation *one = find_allocation((void *)pointer);
  if (one != NULL && base != NULL) *base = (uint64_t)one->address;
  if (one != NULL && size != NULL) *size = one->size;
  drop_lock();
  return one != NULL ? OK : INVALID_VALUE;
}

status cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
  uint64_t base;
  size_t size;
  if (cuMemGetAddressRange(&base, &size, pointer) != OK) return INVALID_VALUE;
  if (attribute == RANGE_START_ADDRESS) *(uint64_t *)value = base;
  else if (attribute == RANGE_SIZE) *(size_t *)value = size;
  else return NOT_SUPPORTED;
  return OK;
}

status cuMemGetAllocationGranularity(size_t *granularity, const void *properties, int option) {
  (void)properties, (void)option;
  *granularity = GRANULARITY;
  return OK;
}

status cudaGetDriverEntryPoint(
    const char *name, void **function, unsigned long long flags, int *result) {
  (void)flags;
  *function = dlsym(RTLD_DEFAULT, name);
  if (result != NULL) *result = *function != NULL ? 0 : 1;
  return failed(*function != NULL ? OK : INVALID_VALUE);
}

/* Memory that is mapped piece by piece: the server looks these up, and does without. */
status cuMemCreate(void) { return NOT_SUPPORTED; }
status cuMemSetAccess(void) { return NOT_SUPPORTED; }
status cuMemRelease(void) { return NOT_SUPPORTED; }
status cuMemAddressFree(void) { return NOT_SUPPORTED; }
status cuMemUnmap(void) { return NOT_SUPPORTED; }
status cuMemAddressReserve(void) { return NOT_SUPPORTED; }
status cuMemMap(void) { return NOT_SUPPORTED; }
