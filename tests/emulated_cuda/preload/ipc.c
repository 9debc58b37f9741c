/* Memory of other processes. */
#define _GNU_SOURCE
#include "emucuda.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char magic[8] = "EMUCUDA1";
_Static_assert(sizeof(ipc_handle) == 64, "CUDA_IPC_HANDLE_SIZE");

status cudaIpcGetMemHandle(ipc_handle *handle, void *pointer) {
  take_lock();
  allocation *one = find_allocation(pointer);
  status error = one != NULL && one->kind == DEVICE_MEMORY ? OK : INVALID_VALUE;
  if (error == OK) {
    memset(handle, 0, sizeof *handle);
    memcpy(handle->magic, magic, sizeof magic);
    handle->length = one->length;
    handle->device = physical_device(one->device);
    handle->owner = one->owner;
    strcpy(handle->name, one->name);
  }
  write_log("gethandle", one, error);
  drop_lock();
  return failed(error);
}

static status check_handle(const ipc_handle *handle, allocation *one) {
  if (memcmp(handle->magic, magic, sizeof magic) != 0) return INVALID_HANDLE;
  if (strncmp(handle->name, "/emucuda.", 9) != 0 || handle->length == 0) return INVALID_HANDLE;
  if (handle->owner == getpid()) return INVALID_CONTEXT; /* not for the exporter itself */
  one->device = device_with_physical(handle->device);
  if (one->device < 0) return INVALID_DEVICE;
  return one->device == this_device() || has_peers() ? OK : NO_PEER;
}

static status map_imported(allocation *one) {
  struct stat facts;
  int file = shm_open(one->name, O_RDWR, 0);
  if (file < 0) return INVALID_HANDLE;
  status error = INVALID_HANDLE;
  if (fstat(file, &facts) == 0 && (uint64_t)facts.st_size >= one->size) error = map_file(one, file);
  close(file);
  return error;
}

status cudaIpcOpenMemHandle(void **pointer, ipc_handle handle, unsigned flags) {
  (void)flags;
  *pointer = NULL;
  if (device_count() == 0) return failed(NO_DEVICE);
  handle.name[sizeof handle.name - 1] = '\0';
  allocation one = {.size = handle.length, .kind = IMPORTED_MEMORY, .references = 1};

  take_lock();
  status error = check_handle(&handle, &one);
  strcpy(one.name, error == INVALID_HANDLE ? "?" : handle.name);
  allocation *known = error == OK ? find_imported(handle.name) : NULL;
  if (known != NULL) {
    /* The same handle again is the same pointer, with one more reference. */
    known->references++;
  } else if (error == OK) {
    error = map_imported(&one);
    if (error == OK && (known = new_allocation(&one)) == NULL) error = OUT_OF_MEMORY;
  }
  if (error == OK) *pointer = known->address;
  write_log("open", error == OK ? known : &one, error);
  drop_lock();
  return failed(error);
}

status cudaIpcCloseMemHandle(void *pointer) { return release(pointer, IMPORTED_MEMORY, "close"); }
