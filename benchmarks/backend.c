/* A Triton backend for measurements: OUTPUT<n> is as INPUT<n>, in datatype, shape and size.
 *
 * Built with -DCOPIES=1 it copies each input to its output once, with -DCOPIES=0 it leaves the
 * outputs as they are. Only the outputs that were asked for are made. The few functions of the
 * backend API that are used are declared here, so no header of Triton is needed.
 */

#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef struct Error Error;
typedef struct Request Request;
typedef struct Input Input;
typedef struct Response Response;
typedef struct Output Output;

extern Error* TRITONSERVER_ErrorNew(int code, const char* message);
extern Error* TRITONBACKEND_RequestOutputCount(Request*, uint32_t* count);
extern Error* TRITONBACKEND_RequestOutputName(Request*, uint32_t index, const char** name);
extern Error* TRITONBACKEND_RequestInput(Request*, const char* name, Input**);
extern Error* TRITONBACKEND_RequestRelease(Request*, uint32_t flags);
extern Error* TRITONBACKEND_InputProperties(
    Input*, const char** name, int* datatype, const int64_t** shape, uint32_t* dims,
    uint64_t* byte_size, uint32_t* buffer_count);
extern Error* TRITONBACKEND_InputBuffer(
    Input*, uint32_t index, const void** buffer, uint64_t* byte_size, int* memory, int64_t* id);
extern Error* TRITONBACKEND_ResponseNew(Response**, Request*);
extern Error* TRITONBACKEND_ResponseOutput(
    Response*, Output**, const char* name, int datatype, const int64_t* shape, uint32_t dims);
extern Error* TRITONBACKEND_ResponseSend(Response*, uint32_t flags, Error*);
extern Error* TRITONBACKEND_OutputBuffer(
    Output*, void** buffer, uint64_t byte_size, int* memory, int64_t* id);

enum { INVALID_ARGUMENT = 3, CPU = 0, FINAL = 1, RELEASE_ALL = 1 };

#define TRY(call)             \
  do {                        \
    Error* error = (call);    \
    if (error) return error;  \
  } while (0)

static Error* copy(Input* input, uint32_t count, char* target) {
  for (uint32_t i = 0; i < count; i++) {
    const void* source;
    uint64_t size;
    int memory = CPU;
    int64_t id = 0;
    TRY(TRITONBACKEND_InputBuffer(input, i, &source, &size, &memory, &id));
    memcpy(target, source, size);
    target += size;
  }
  return NULL;
}

static Error* make_output(Request* request, Response* response, uint32_t index) {
  const char *name, *ignored;
  char twin[64];
  Input* input;
  int datatype, memory = CPU;
  const int64_t* shape;
  uint32_t dims, buffers;
  uint64_t byte_size;
  int64_t id = 0;
  Output* output;
  void* target;
  TRY(TRITONBACKEND_RequestOutputName(request, index, &name));
  if (strncmp(name, "OUTPUT", 6))
    return TRITONSERVER_ErrorNew(INVALID_ARGUMENT, "outputs are called OUTPUT0, OUTPUT1, ...");
  snprintf(twin, sizeof twin, "INPUT%s", name + 6);
  TRY(TRITONBACKEND_RequestInput(request, twin, &input));
  TRY(TRITONBACKEND_InputProperties(
      input, &ignored, &datatype, &shape, &dims, &byte_size, &buffers));
  TRY(TRITONBACKEND_ResponseOutput(response, &output, name, datatype, shape, dims));
  TRY(TRITONBACKEND_OutputBuffer(output, &target, byte_size, &memory, &id));
  return COPIES ? copy(input, buffers, target) : NULL;
}

static Error* make_outputs(Request* request, Response* response) {
  uint32_t count;
  TRY(TRITONBACKEND_RequestOutputCount(request, &count));
  for (uint32_t i = 0; i < count; i++) TRY(make_output(request, response, i));
  return NULL;
}

Error* TRITONBACKEND_ModelInstanceExecute(void* instance, Request** requests, uint32_t count) {
  (void)instance;
  for (uint32_t i = 0; i < count; i++) {
    Response* response;
    if (TRITONBACKEND_ResponseNew(&response, requests[i]) == NULL)
      TRITONBACKEND_ResponseSend(response, FINAL, make_outputs(requests[i], response));
    TRITONBACKEND_RequestRelease(requests[i], RELEASE_ALL);
  }
  return NULL;
}
