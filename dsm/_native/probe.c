/* Measuring: the floors that `dsm bench` compares with, in C and without any of the machinery.
 *
 * Owns nothing that lives longer than a call.  dsm_probe_fault puts its own SIGSEGV handler in for as long
 * as it runs: only in a process that has not started a worker.
 */
#include "internal.h"

#include <sys/mman.h>
#include <sys/socket.h>

static uint64_t probe_low, probe_high, probe_page;
static struct sigaction probe_before;

/* SIGNAL-SAFE. */
static void probe_handler(int signal, siginfo_t *info, void *context) {
  (void)context;
  uint64_t address = (uint64_t)info->si_addr;
  if (address < probe_low || address >= probe_high) { /* not ours: let it happen again without us */
    sigaction(signal, &probe_before, NULL);
    return;
  }
  mprotect((void *)(address & ~(probe_page - 1)), probe_page, PROT_READ | PROT_WRITE);
}

int64_t dsm_probe_fault(uint32_t count, uint64_t *samples_ns) {
  if (count == 0) return -EINVAL;
  if (load_ordered(&dsm_worker.started)) return -EBUSY;
  probe_page = (uint64_t)sysconf(_SC_PAGESIZE);
  uint64_t stride = 2 * probe_page, bytes = count * stride; /* every other page: each fault splits a map, as ours do */
  uint8_t *map = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return -errno;
  probe_low = (uint64_t)map;
  probe_high = probe_low + bytes;
  struct sigaction action = {.sa_sigaction = probe_handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigfillset(&action.sa_mask);
  int64_t result = sigaction(SIGSEGV, &action, &probe_before) == 0 ? 0 : -errno;
  uint64_t total = 0;
  for (uint32_t i = 0; i < count && result == 0; i++) {
    uint64_t start = dsm_now();
    *(volatile uint8_t *)(map + i * stride);
    samples_ns[i] = dsm_now() - start;
    total += samples_ns[i];
  }
  if (result == 0) sigaction(SIGSEGV, &probe_before, NULL);
  munmap(map, bytes);
  return result < 0 ? result : (int64_t)(total / count);
}

static int64_t move_all(int fd, uint8_t *buffer, uint32_t bytes, bool out) {
  for (uint32_t done = 0; done < bytes;) {
    ssize_t part = out ? send(fd, buffer + done, bytes - done, MSG_NOSIGNAL) : recv(fd, buffer + done, bytes - done, 0);
    if (part < 0 && errno == EINTR) continue;
    if (part < 0) return -errno;
    if (part == 0) return -ECONNRESET;
    done += (uint32_t)part;
  }
  return 0;
}

static uint8_t *probe_buffer(uint32_t request, uint32_t reply) {
  uint64_t bytes = (uint64_t)(request > reply ? request : reply) + 1;
  void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  return map == MAP_FAILED ? NULL : map;
}

static void free_buffer(uint8_t *buffer, uint32_t request, uint32_t reply) {
  munmap(buffer, (uint64_t)(request > reply ? request : reply) + 1);
}

int64_t dsm_probe_ask(int fd, uint32_t count, uint32_t request, uint32_t reply, uint64_t *samples_ns) {
  if (count == 0) return -EINVAL;
  uint8_t *buffer = probe_buffer(request, reply);
  if (!buffer) return -errno;
  int64_t result = 0;
  uint64_t total = 0;
  for (uint32_t i = 0; i < count && result == 0; i++) {
    uint64_t start = dsm_now();
    result = move_all(fd, buffer, request, true);
    if (result == 0) result = move_all(fd, buffer, reply, false);
    samples_ns[i] = dsm_now() - start;
    total += samples_ns[i];
  }
  free_buffer(buffer, request, reply);
  return result < 0 ? result : (int64_t)(total / count);
}

int64_t dsm_probe_answer(int fd, uint32_t request, uint32_t reply) {
  uint8_t *buffer = probe_buffer(request, reply);
  if (!buffer) return -errno;
  int64_t answered = 0, result = 0;
  while (result == 0) {
    result = move_all(fd, buffer, request, false);
    if (result == 0) result = move_all(fd, buffer, reply, true);
    answered += result == 0;
  }
  free_buffer(buffer, request, reply);
  return result == -ECONNRESET || result == -EPIPE ? answered : result;
}
