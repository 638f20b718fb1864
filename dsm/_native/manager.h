/* What board.c and tables.c share: the manager's view of a node. */
#ifndef DSM_MANAGER_H
#define DSM_MANAGER_H

#include "internal.h"

struct dsm_member {
  struct dsm_worker_board *board; /* NULL: no such worker */
  uint64_t done_seen;             /* the commands_done that was reported last */
  int nudge_fd;
};

struct dsm_board {
  struct dsm_node_board *node;
  int bell_fd;
  int epoll_fd; /* the one that the bell is registered with */
  uint32_t doorbell_seen;
  bool unfinished; /* the last collection ran out of room */
  uint32_t unpolled; /* counts waits that slots ended */
  uint32_t first;  /* whom the next collection asks first */
  uint32_t count;
  uint32_t numbers[DSM_WORKERS]; /* the first `count`: who is attached */
  struct dsm_member members[DSM_WORKERS];
};

#endif
