/* Runs operations on a cache of a heap one instruction at a time, and prints each store into its buffer.
 *
 * A process that is killed leaves of the buffer what it had stored until then: whoever has every store, in its order,
 * has what is left after a death at each instruction.  The child is traced; its parent compares the buffer, which
 * both map, after each step.
 *
 *     steps BUFFER_FD BUFFER_WORDS < script
 *
 * Script: the layout (`dsm_cache_new`), then an operation on a line.  Output: a line for each beginning of an
 * operation, each store (index and value of the words that differ), and each end, with what the operation returned.
 */
#include "internal.h"
#include "shim.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 64 };

/* Nobody else has the lock of the cache. */
void dsm_pause(void) {}

/* What an operation returned, for the parent. */
struct told {
  uint64_t count, result[MOST];
};

static uint64_t number(void) {
  uint64_t value;
  if (scanf("%" SCNu64, &value) != 1) exit(2);
  return value;
}

static void operate(struct dsm_cache *cache, const uint64_t *words, const char *name, const uint64_t *arguments,
                    struct told *told) {
  told->count = 1;
  if (!strcmp(name, "take")) {
    told->result[0] = dsm_cache_take(cache, arguments[0], 0);
  } else if (!strcmp(name, "put")) {
    told->result[0] = (uint64_t)dsm_cache_put(cache, arguments[0], arguments[1], (uint32_t)arguments[2]);
  } else if (!strcmp(name, "fill")) {
    told->result[0] =
        (uint64_t)dsm_cache_fill(cache, (uint32_t)arguments[0], arguments + 3, (uint32_t)arguments[2], arguments[1]);
  } else if (!strcmp(name, "surplus")) {
    told->count = dsm_cache_surplus(cache, (uint32_t)arguments[0]);
    uint32_t outbox = (uint32_t)arguments[1];
    for (uint64_t at = 0; at < told->count; at++) told->result[at] = words[outbox + at];
  } else if (!strcmp(name, "sent")) {
    told->count = 0;
    dsm_cache_sent(cache, arguments[0]);
  } else {
    _exit(3);
  }
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  size_t words = strtoull(argv[2], NULL, 10);
  uint64_t *buffer = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
  struct told *told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  uint64_t *seen = malloc(words * 8);
  if (buffer == MAP_FAILED || told == MAP_FAILED || !seen) return 2;
  memcpy(seen, buffer, words * 8);

  uint32_t steps = (uint32_t)number(), classes = (uint32_t)number(), most = (uint32_t)number();
  uint8_t *by_step = malloc(steps);
  uint32_t *capacities = calloc(classes, 4), *batches = calloc(classes, 4);
  if (!by_step || !capacities || !batches) return 2;
  for (uint32_t at = 0; at < steps; at++) by_step[at] = (uint8_t)number();
  for (uint32_t at = 0; at < classes; at++) capacities[at] = (uint32_t)number();
  for (uint32_t at = 0; at < classes; at++) batches[at] = (uint32_t)number();
  struct dsm_cache *cache = dsm_cache_new(buffer, by_step, steps, capacities, batches, classes, most);
  if (!cache) return 2;

  char name[16];
  while (scanf("%15s", name) == 1) {
    uint64_t arguments[MOST] = {0}, count = number();
    if (count > MOST) return 2;
    for (uint64_t at = 0; at < count; at++) arguments[at] = number();
    printf("begin %s", name);
    for (uint64_t at = 0; at < count; at++) printf(" %" PRIu64, arguments[at]);
    printf("\n");
    fflush(stdout);
    /* A child for each operation; nothing but the buffer and `told` outlives it. */
    pid_t child = fork();
    if (child < 0) return 2;
    if (child == 0) {
      if (ptrace(PTRACE_TRACEME, 0, NULL, NULL)) _exit(4);
      raise(SIGSTOP);
      operate(cache, buffer, name, arguments, told);
      _exit(0);
    }
    int status;
    uint64_t instructions = 0;
    for (;;) {
      if (waitpid(child, &status, 0) != child) return 2;
      for (size_t at = 0; memcmp(seen, buffer, words * 8);) {
        for (; seen[at] == buffer[at];) at++;
        seen[at] = buffer[at];
        printf("store %" PRIu64 " %zu %" PRIu64 "\n", instructions, at, seen[at]);
      }
      if (!WIFSTOPPED(status)) break;
      instructions++;
      if (ptrace(PTRACE_SINGLESTEP, child, NULL, NULL)) return 2;
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status)) return 10 + WEXITSTATUS(status);
    printf("end %" PRIu64, instructions);
    for (uint64_t at = 0; at < told->count; at++) printf(" %" PRIu64, told->result[at]);
    printf("\n");
  }
  return 0;
}
