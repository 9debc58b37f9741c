/* Memory of the device and of the host, and copies between them. */
#define _GNU_SOURCE
#include "emucuda.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MOST_ALLOCATIONS = 8192, PAGE = 4096 };

static allocation table[MOST_ALLOCATIONS];
static int used_slots, last_number;
static int live[MEMORY_KINDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void take_lock(void) { pthread_mutex_lock(&lock); }
void drop_lock(void) { pthread_mutex_unlock(&lock); }

static size_t rounded(size_t size, size_t granule) { return (size + granule - 1) / granule * granule; }

/* The table */

allocation *new_allocation(const allocation *like) {
  for (int i = 0; i < MOST_ALLOCATIONS; i++) {
    if (table[i].address != NULL) continue;
    if (i == used_slots) used_slots++;
    table[i] = *like;
    live[like->kind]++;
    return &table[i];
  }
  return NULL;
}

allocation *find_allocation(const void *pointer) {
  const char *wanted = pointer;
  for (int i = 0; i < used_slots; i++) {
    char *address = table[i].address;
    if (address != NULL && wanted >= address && wanted < address + table[i].size) return &table[i];
  }
  return NULL;
}

allocation *find_imported(const char *name) {
  for (int i = 0; i < used_slots; i++) {
    allocation *one = &table[i];
    if (one->address != NULL && one->kind == IMPORTED_MEMORY && strcmp(one->name, name) == 0) {
      return one;
    }
  }
  return NULL;
}

void write_log(const char *operation, const allocation *one, status error) {
  const char *path = getenv("EMUCUDA_LOG");
  if (path == NULL) return;
  static const allocation none = {.name = "-", .device = -1};
  if (one == NULL) one = &none;
  char line[256];
  int length = snprintf(
      line, sizeof line,
      "pid=%d operation=%s name=%s size=%zu device=%d references=%d error=%d"
      " live_device=%d live_ipc=%d\n",
      getpid(), operation, one->name, one->size, one->device, one->references, error,
      live[DEVICE_MEMORY], live[IMPORTED_MEMORY]);
  int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) return;
  if (write(file, line, length) < 0) { /* a log that cannot be written is not worth an error */
  }
  close(file);
}

/* Mapping */

status map_file(allocation *into, int file) {
  into->length = rounded(into->size, GRANULARITY);
  into->visible = mmap(NULL, into->length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  into->address = mmap(NULL, into->length, PROT_NONE, MAP_SHARED, file, 0);
  if (into->visible != MAP_FAILED && into->address != MAP_FAILED) return OK;
  into->address = NULL;
  return OUT_OF_MEMORY;
}

static void unmap(allocation *one) {
  munmap(one->visible, one->length);
  if (one->address != one->visible) munmap(one->address, one->length);
  if (one->kind == DEVICE_MEMORY && one->owner == getpid()) shm_unlink(one->name);
  live[one->kind]--;
  one->address = NULL;
}

__attribute__((destructor)) static void remove_files(void) {
  for (int i = 0; i < used_slots; i++) {
    allocation *one = &table[i];
    /* A forked child has the names, but they are not its own. */
    if (one->address != NULL && one->kind == DEVICE_MEMORY && one->owner == getpid()) {
      shm_unlink(one->name);
    }
  }
}

static status allocate_device(void **pointer, size_t size) {
  allocation one = {
      .size = size,
      .kind = DEVICE_MEMORY,
      .device = this_device(),
      .references = 1,
      .owner = getpid(),
  };
  snprintf(one.name, sizeof one.name, "/emucuda.%d.%d", one.owner, ++last_number);
  int file = shm_open(one.name, O_RDWR | O_CREAT | O_EXCL, 0600);
  if (file < 0) return OUT_OF_MEMORY;
  status error = ftruncate(file, (off_t)rounded(size, GRANULARITY)) != 0 ? OUT_OF_MEMORY : OK;
  if (error == OK) error = map_file(&one, file);
  if (error == OK && new_allocation(&one) == NULL) error = OUT_OF_MEMORY;
  close(file);
  if (error != OK) shm_unlink(one.name);
  else *pointer = one.address;
  write_log("malloc", &one, error);
  return error;
}

static status allocate_host(void **pointer, size_t size) {
  allocation one = {
      .size = size,
      .length = rounded(size, PAGE),
      .kind = HOST_MEMORY,
      .device = this_device(),
      .references = 1,
  };
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  one.address = mmap(NULL, one.length, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (one.address == MAP_FAILED) return OUT_OF_MEMORY;
  one.visible = one.address;
  take_lock();
  allocation *kept = new_allocation(&one);
  drop_lock();
  if (kept == NULL) {
    munmap(one.address, one.length);
    return OUT_OF_MEMORY;
  }
  *pointer = one.address;
  return OK;
}

status release(void *pointer, int kind, const char *operation) {
  if (pointer == NULL) return OK;
  take_lock();
  allocation *one = find_allocation(pointer);
  status error = OK;
  if (one == NULL || one->address != (char *)pointer) error = INVALID_POINTER;
  else if ((one->kind == IMPORTED_MEMORY) != (kind == IMPORTED_MEMORY)) error = INVALID_POINTER;
  if (error != OK && kind == IMPORTED_MEMORY) error = INVALID_VALUE;

  allocation before = {.name = "-", .device = -1};
  if (error == OK) {
    one->references--;
    before = *one;
    if (one->references == 0) unmap(one);
  }
  write_log(operation, &before, error);
  drop_lock();
  return failed(error);
}

/* CUDA's functions */

status cudaMalloc(void **pointer, size_t size) {
  if (device_count() == 0) return failed(NO_DEVICE);
  *pointer = NULL;
  if (size == 0) return OK;
  take_lock();
  status error = allocate_device(pointer, size);
  drop_lock();
  return failed(error);
}

status cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
  (void)flags;
  return failed(allocate_host(pointer, size));
}

status cudaMallocManaged(void **pointer, size_t size, unsigned flags) {
  (void)flags;
  return failed(allocate_host(pointer, size));
}

status cudaFree(void *pointer) { return release(pointer, DEVICE_MEMORY, "free"); }
status cudaFreeHost(void *pointer) { return release(pointer, HOST_MEMORY, "freehost"); }

/* Return where the host reaches the bytes; NULL if they reach beyond their allocation. */
static char *visible_bytes(const void *pointer, size_t size) {
  allocation *one = find_allocation(pointer);
  if (one == NULL || one->kind == HOST_MEMORY) return (char *)pointer;
  size_t offset = (const char *)pointer - one->address;
  return offset + size <= one->size ? one->visible + offset : NULL;
}

static status copy(void *target, const void *source, size_t size) {
  if (size == 0) return OK;
  take_lock();
  char *to = visible_bytes(target, size);
  char *from = visible_bytes(source, size);
  drop_lock();
  if (to == NULL || from == NULL) return failed(INVALID_VALUE);
  memmove(to, from, size);
  return OK;
}

status cudaMemcpy(void *target, const void *source, size_t size, int kind) {
  (void)kind;
  return copy(target, source, size);
}

status cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
  (void)kind, (void)stream;
  return copy(target, source, size);
}

status cudaMemcpyPeer(void *target, int to, const void *source, int from, size_t size) {
  (void)to, (void)from;
  return copy(target, source, size);
}

status cudaMemcpyPeerAsync(
    void *target, int to, const void *source, int from, size_t size, void *stream) {
  (void)to, (void)from, (void)stream;
  return copy(target, source, size);
}

status cudaMemset(void *target, int value, size_t size) {
  take_lock();
  char *to = visible_bytes(target, size);
  drop_lock();
  if (to == NULL) return failed(INVALID_VALUE);
  memset(to, value, size);
  return OK;
}

status cudaMemPrefetchAsync(const void *pointer, size_t size, int device, void *stream) {
  (void)pointer, (void)size, (void)device, (void)stream;
  return OK;
}
