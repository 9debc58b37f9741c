/* CUDA without a GPU, for a tritonserver that was built with GPU support.
 *
 * This library has the name of the server's own libcudart and is preloaded, so that the real one
 * is never loaded: what is missing here fails loudly. It is libcuda, too.
 *
 * Device memory is a file in /dev/shm, as on the Python side. The pointer that is handed out is a
 * mapping without any access (touching it on the host is a SIGSEGV, as with a GPU's memory);
 * copies go through a second mapping of the file. Work is done by the time that a call returns.
 *
 * Environment:
 *   EMUCUDA_DEVICES   how many GPUs there are; 1 by default
 *   EMUCUDA_ORDER     which of them are seen and in which order, as "1,0"; all by default
 *   EMUCUDA_PEER      1 if GPUs reach each other's memory
 *   EMUCUDA_LOG       file that gets a line for each malloc, free, open and close
 */
#ifndef EMUCUDA_H
#define EMUCUDA_H

#include <stdint.h>
#include <stddef.h>

typedef int status;

enum {
  OK = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_POINTER = 17,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_CONTEXT = 201,
  NO_PEER = 217,
  INVALID_HANDLE = 400,
  NOT_SUPPORTED = 801
};

/* What another process needs to map memory, in the 64 bytes of a cudaIpcMemHandle_t. */
typedef struct {
  char magic[8];
  uint64_t length; /* of the block: what IPC shares are whole blocks */
  int32_t device;  /* physical number */
  int32_t owner;   /* process id */
  char name[40];   /* of its file, with a leading slash */
} ipc_handle;

/* What the driver hands out are whole blocks of so many bytes. */
enum { GRANULARITY = 2 << 20 };

enum { DEVICE_MEMORY, IMPORTED_MEMORY, HOST_MEMORY, MEMORY_KINDS };

typedef struct {
  char *address; /* where it seems to be; NULL in an unused slot of the table */
  char *visible; /* where the host reaches it */
  size_t size;   /* what copies may touch */
  size_t length; /* what is mapped */
  int kind;
  int device; /* ordinal in this process */
  int references;
  int owner;
  char name[40];
} allocation;

/* devices.c */
int device_count(void);
int this_device(void);
int physical_device(int device);
int device_with_physical(int physical);
int has_peers(void);
status failed(status error); /* remembers it for cudaGetLastError */

/* memory.c; all but take_lock under its lock */
void take_lock(void);
void drop_lock(void);
allocation *find_allocation(const void *pointer);
allocation *find_imported(const char *name);
allocation *new_allocation(const allocation *like);
status map_file(allocation *into, int file);
status release(void *pointer, int kind, const char *operation);
void write_log(const char *operation, const allocation *one, status error);

#endif
