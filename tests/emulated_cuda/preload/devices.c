/* Devices, and the errors of a thread. */
#define _GNU_SOURCE
#include "emucuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* cudaDeviceProp of CUDA 12, as far as the server reads it */
enum { PROPERTIES = 1032, UUID = 256, TOTAL_MEMORY = 288, MAJOR = 360, MINOR = 364 };

static const size_t total_memory = 8ul << 30;
static __thread int current;
static __thread status last_error;

status failed(status error) {
  if (error != OK) last_error = error;
  return error;
}

int device_count(void) {
  const char *order = getenv("EMUCUDA_ORDER");
  if (order != NULL && *order != '\0') {
    int count = 1;
    for (; *order != '\0'; order++) count += *order == ',';
    return count;
  }
  const char *devices = getenv("EMUCUDA_DEVICES");
  return devices != NULL ? atoi(devices) : 1;
}

int physical_device(int device) {
  const char *order = getenv("EMUCUDA_ORDER");
  if (order == NULL || *order == '\0') return device;
  for (; device > 0 && order != NULL; device--) {
    order = strchr(order, ',');
    if (order != NULL) order++;
  }
  return order != NULL ? atoi(order) : -1;
}

int device_with_physical(int physical) {
  for (int device = 0; device < device_count(); device++) {
    if (physical_device(device) == physical) return device;
  }
  return -1;
}

int this_device(void) { return current; }

int has_peers(void) {
  const char *peer = getenv("EMUCUDA_PEER");
  return peer != NULL && *peer == '1';
}

static int is_device(int device) { return device >= 0 && device < device_count(); }

status cudaGetDeviceCount(int *count) {
  *count = device_count();
  return failed(*count > 0 ? OK : NO_DEVICE);
}

status cudaGetDevice(int *device) {
  *device = current;
  return OK;
}

status cudaSetDevice(int device) {
  if (!is_device(device)) return failed(INVALID_DEVICE);
  current = device;
  return OK;
}

status cudaGetDeviceProperties_v2(char *properties, int device) {
  if (!is_device(device)) return failed(INVALID_DEVICE);
  memset(properties, 0, PROPERTIES);
  strcpy(properties, "Emulated GPU");
  /* The same 16 bytes as on the Python side, without a final zero. */
  char uuid[24];
  snprintf(uuid, sizeof uuid, "EMULATED-GPU-%03d", physical_device(device));
  memcpy(properties + UUID, uuid, 16);
  *(size_t *)(properties + TOTAL_MEMORY) = total_memory;
  *(int *)(properties + MAJOR) = 9;
  *(int *)(properties + MINOR) = 0;
  return OK;
}

status cudaDeviceGetPCIBusId(char *id, int length, int device) {
  snprintf(id, length, "0000:%02x:00.0", physical_device(device) + 1);
  return OK;
}

status cudaDeviceCanAccessPeer(int *can_access, int device, int peer) {
  *can_access = device != peer && has_peers();
  return OK;
}

status cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  (void)peer, (void)flags;
  return failed(has_peers() ? OK : NO_PEER);
}

status cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = *greatest = 0;
  return OK;
}

status cudaMemGetInfo(size_t *unused, size_t *total) {
  *unused = *total = total_memory;
  return OK;
}

status cudaGetLastError(void) {
  status error = last_error;
  last_error = OK;
  return error;
}

const char *cudaGetErrorString(status error) {
  switch (error) {
    case OK: return "no error";
    case INVALID_VALUE: return "invalid argument";
    case OUT_OF_MEMORY: return "out of memory";
    case INVALID_POINTER: return "invalid device pointer";
    case NO_DEVICE: return "no CUDA-capable device is detected";
    case INVALID_DEVICE: return "invalid device ordinal";
    case INVALID_CONTEXT: return "invalid device context";
    case NO_PEER: return "peer access is not supported between these two devices";
    case INVALID_HANDLE: return "invalid resource handle";
    case NOT_SUPPORTED: return "operation not supported";
    default: return "another error of the emulated CUDA";
  }
}
