/* Streams, events and kernels: what is asked for is done by the time that a call returns, and
 * kernels may be registered but not launched. */
#include "emucuda.h"

#include <stdlib.h>

status cudaStreamCreate(void **stream) {
  *stream = malloc(1);
  return OK;
}

status cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
  (void)flags, (void)priority;
  return cudaStreamCreate(stream);
}

status cudaStreamDestroy(void *stream) {
  free(stream);
  return OK;
}

status cudaStreamSynchronize(void *stream) {
  (void)stream;
  return OK;
}

status cudaStreamGetFlags(void *stream, unsigned *flags) {
  (void)stream;
  *flags = 0;
  return OK;
}

status cudaLaunchHostFunc(void *stream, void (*function)(void *), void *argument) {
  (void)stream;
  function(argument);
  return OK;
}

status cudaEventRecord(void *event, void *stream) {
  (void)event, (void)stream;
  return OK;
}

status cudaEventSynchronize(void *event) {
  (void)event;
  return OK;
}

/* Kernels. Their parameters are never looked at. */

status cudaLaunchKernel(void) { return failed(NOT_SUPPORTED); }

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle;
  (void)binary;
  return &handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
void __cudaRegisterFunction(void) {}
unsigned __cudaPushCallConfiguration(void) { return OK; }
status __cudaPopCallConfiguration(void) { return NOT_SUPPORTED; }
