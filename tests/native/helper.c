/* What the tests of the shim do outside the interpreter's lock: touching memory from many threads. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct walk {
  volatile uint8_t *start;
  uint64_t count, stride;
  int write;
  uint64_t sum;
};

static void *walk(void *given) {
  struct walk *w = given;
  for (uint64_t i = 0; i < w->count; i++) {
    volatile uint8_t *at = w->start + i * w->stride;
    if (w->write) {
      *at = (uint8_t)(i + 1);
    } else {
      w->sum += *at;
    }
  }
  return NULL;
}

/* Touch `count` places from `threads` threads at once: all the same ones, or (`apart`) each its share. */
uint64_t touch(uint8_t *start, uint64_t count, uint64_t stride, int write, int threads, int apart, uint64_t stack) {
  pthread_t ids[512];
  struct walk walks[512];
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  if (stack) pthread_attr_setstacksize(&attributes, stack);
  uint64_t share = apart ? count / (uint64_t)threads : count, sum = 0;
  for (int i = 0; i < threads; i++) {
    walks[i] = (struct walk){start + (apart ? (uint64_t)i * share * stride : 0), share, stride, write, 0};
    if (pthread_create(&ids[i], &attributes, walk, &walks[i]) != 0) abort();
  }
  for (int i = 0; i < threads; i++) {
    pthread_join(ids[i], NULL);
    sum += walks[i].sum;
  }
  return sum;
}

/* How many of `count` places hold neither `one` nor `two`. */
uint64_t count_other(const volatile uint8_t *start, uint64_t count, uint64_t stride, int one, int two) {
  uint64_t other = 0;
  for (uint64_t i = 0; i < count; i++) {
    int value = start[i * stride];
    other += value != one && value != two;
  }
  return other;
}

/* errno after a fault that happened with errno 77. */
int errno_after(volatile uint8_t *at) {
  errno = 77;
  *at = 1;
  return errno;
}

/* Touch with an alternate stack of `bytes`. */
void touch_on_alternate_stack(volatile uint8_t *at, size_t bytes) {
  stack_t stack = {.ss_sp = malloc(bytes), .ss_size = bytes}, old;
  sigaltstack(&stack, &old);
  *at = 1;
  sigaltstack(&old, NULL);
  free(stack.ss_sp);
}

/* Add to the words of `pages` pages, checking that nobody lost what we wrote.  The number of losses. */
uint64_t bounce(_Atomic uint64_t *base, uint64_t pages, uint64_t page_bytes, uint64_t word, uint64_t rounds, uint32_t seed,
                int shared) {
  uint64_t expected[64] = {0}, lost = 0;
  for (uint64_t i = 0; i < rounds; i++) {
    seed = seed * 1664525u + 1013904223u;
    uint64_t page = (seed >> 16) % pages;
    _Atomic uint64_t *at = base + page * page_bytes / 8 + word;
    uint64_t value = atomic_load_explicit(at, memory_order_relaxed);
    if (value != expected[page]) lost++;
    atomic_store_explicit(at, value + 1, memory_order_relaxed);
    expected[page] = value + 1;
    if (shared) atomic_fetch_add(base + page * page_bytes / 8, 1);
    if (i % 4 == 0) sched_yield();
  }
  return lost;
}

/* Handlers for the chain. */
static volatile uint64_t *repair;
static uint64_t repair_bytes;
static _Atomic int called;
static _Atomic int blocked; /* whether SIGUSR1 and SIGSEGV were blocked: bits 0 and 1 */

static void repairing(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)info, (void)context;
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, NULL, &mask);
  blocked = sigismember(&mask, SIGUSR1) | sigismember(&mask, SIGSEGV) << 1;
  called++;
  mprotect((void *)repair, repair_bytes, PROT_READ | PROT_WRITE);
}

/* Install a handler that makes a page of its own accessible when it faults; returns that page. */
uint64_t install_repairing(int flags, int block_usr1) {
  repair_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
  if (!repair) repair = mmap(NULL, repair_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct sigaction action = {.sa_sigaction = repairing, .sa_flags = SA_SIGINFO | flags};
  if (block_usr1) sigaddset(&action.sa_mask, SIGUSR1);
  sigaction(SIGSEGV, &action, NULL);
  return (uint64_t)repair;
}

int repairs(void) { return called; }
int repair_mask(void) { return blocked; }

uint64_t installed(void) {
  struct sigaction now;
  sigaction(SIGSEGV, NULL, &now);
  return (uint64_t)now.sa_sigaction;
}

/* As a handler that does nothing would. */
static void useless(int signal) {
  (void)signal;
  called++;
}

void install_useless(void) {
  struct sigaction action = {.sa_handler = useless};
  sigaction(SIGSEGV, &action, NULL);
}

/* Map with a border on every other page until the kernel refuses; returns how many were made. */
uint64_t use_up_maps(uint64_t leave) {
  uint64_t bytes = 1 << 12, made = 0;
  uint8_t *area = mmap(NULL, bytes * 140000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  while (made < 69000 && mprotect(area + 2 * made * bytes, bytes, PROT_READ) == 0) made++;
  for (uint64_t i = 0; i < leave / 2 && made; i++) mprotect(area + 2 * --made * bytes, bytes, PROT_NONE);
  return made;
}

/* fork without Python; the child touches `at` and exits with what it read. */
int fork_and_read(volatile uint8_t *at) {
  pid_t child = fork();
  if (child == 0) _exit(*at);
  return child;
}

/* Write every byte of an area once, in an order that depends on `seed`, as slowly as `pause` says; *written counts. */
void write_all(volatile uint8_t *area, uint64_t bytes, uint64_t seed, uint32_t pause, _Atomic uint64_t *written) {
  uint64_t at = seed % bytes;
  for (uint64_t i = 0; i < bytes; i++) {
    at = (at + 40503) % bytes; /* a prime: no byte is met twice unless it divides `bytes` */
    area[at] = (uint8_t)(area[at] + 1 + seed % 250);
    for (volatile uint32_t spin = pause; spin; spin--) continue;
    (*written)++;
  }
}

/* Count up every `step`th byte of an area from `first` on until `stop`: how often one was not as it was left. */
uint64_t count_up(volatile uint8_t *area, uint64_t bytes, uint64_t first, uint64_t step, _Atomic uint64_t *stop,
                  _Atomic uint64_t *rounds) {
  uint64_t lost = 0;
  for (; !*stop; (*rounds)++) {
    for (uint64_t at = first; at < bytes; at += step) {
      lost += area[at] != (uint8_t)*rounds;
      area[at] = (uint8_t)(*rounds + 1);
    }
  }
  return lost;
}

/* In place of libc's where this library is preloaded: once, something happens right before the kernel is asked. */
static void (*_Atomic before_epoll)(void);

void before_next_epoll(void (*what)(void)) { before_epoll = what; }

int epoll_wait(int epoll_fd, struct epoll_event *events, int room, int timeout) {
  void (*what)(void) = atomic_exchange(&before_epoll, NULL);
  if (what) what();
  return (int)syscall(SYS_epoll_pwait, epoll_fd, events, room, timeout, NULL, (size_t)8);
}

/* Likewise: the monotonic clock stands where it was set; with 0 it goes on. */
static _Atomic uint64_t clock_ns;

void set_clock(uint64_t ns) { clock_ns = ns; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  uint64_t ns = clock_ns;
  if (clock != CLOCK_MONOTONIC || !ns) return (int)syscall(SYS_clock_gettime, clock, now);
  *now = (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
  return 0;
}
