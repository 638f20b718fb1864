/* A client of dsm's lease service in one file of C: no library but the C library's own.
 *
 * What it speaks is in PROTOCOL.md, "The lease service"; tests/vectors/ has bytes to check a client against.
 *
 *   cc -O2 -Wall -Wextra -Werror -o lease_client lease_client.c
 *   ./lease_client 127.0.0.1 7412 lease 1024 60000          prints a token: id and key
 *   ./lease_client 127.0.0.1 7412 set TOKEN 0 hello
 *   ./lease_client 127.0.0.1 7412 get TOKEN 0 5             prints hello
 *   ./lease_client 127.0.0.1 7412 renew TOKEN 60000
 *   ./lease_client 127.0.0.1 7412 release TOKEN
 *   ./lease_client 127.0.0.1 7412 ping
 *   ./lease_client vectors leases.txt ...                   checks itself against test vectors
 *
 * DSM_SECRET in the environment is the server's secret.  Status: 0 done, 1 the server said no, 2 anything else.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

/* -- the protocol's numbers ---------------------------------------------------------------------------- */

enum { OP_LEASE = 1, OP_GET, OP_SET, OP_RENEW, OP_RELEASE, OP_INFO, OP_LIST, OP_FIGURES, OP_PING };
enum { HELLO = 1, CHALLENGE, PROOF, WELCOME, REFUSE };
enum { VERSION = 1, GREETING = 40, REQUEST = 64, REPLY = 32, MAX_ERROR = 1024, MAX_GET = 1 << 30 };

struct reply {
  uint8_t op, status;
  uint16_t zero;
  uint32_t number;
  uint64_t payload, a, b;
};

/* -- bytes ---------------------------------------------------------------------------------------------- */

static void die(const char *what) {
  fprintf(stderr, "lease_client: %s\n", what);
  exit(2);
}

static void put(uint8_t *to, uint64_t value, int bytes) { /* little-endian */
  for (int i = 0; i < bytes; i++) to[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t take(const uint8_t *from, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; i++) value |= (uint64_t)from[i] << (8 * i);
  return value;
}

static int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

/* Read `count` bytes of hexadecimal digits. */
static bool unhex(const char *text, uint8_t *to, size_t count) {
  for (size_t i = 0; i < count; i++) {
    int high = digit(text[2 * i]), low = high < 0 ? -1 : digit(text[2 * i + 1]);
    if (low < 0) return false;
    to[i] = (uint8_t)(high << 4 | low);
  }
  return true;
}

static void hex(const uint8_t *from, size_t count) {
  for (size_t i = 0; i < count; i++) printf("%02x", from[i]);
}

/* -- SHA-256 (FIPS 180-4) and HMAC (RFC 2104) ------------------------------------------------------------ */

static const uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t turn(uint32_t x, int by) { return x >> by | x << (32 - by); }

static void sha_block(uint32_t state[8], const uint8_t *block) {
  uint32_t w[64], v[8];
  for (int i = 0; i < 16; i++)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
           block[4 * i + 3];
  for (int i = 16; i < 64; i++) {
    uint32_t s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3;
    uint32_t s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  memcpy(v, state, sizeof v);
  for (int i = 0; i < 64; i++) {
    uint32_t s1 = turn(v[4], 6) ^ turn(v[4], 11) ^ turn(v[4], 25);
    uint32_t first = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + ROUND[i] + w[i];
    uint32_t s0 = turn(v[0], 2) ^ turn(v[0], 13) ^ turn(v[0], 22);
    uint32_t second = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
    memmove(v + 1, v, 7 * sizeof v[0]);
    v[4] += first;
    v[0] = first + second;
  }
  for (int i = 0; i < 8; i++) state[i] += v[i];
}

/* The digest of two pieces, one behind the other. */
static void sha256(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size, uint8_t digest[32]) {
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t block[64];
  size_t used = 0, size = a_size + b_size;
  for (size_t i = 0; i < size; i++) {
    block[used++] = i < a_size ? a[i] : b[i - a_size];
    if (used == 64) sha_block(state, block), used = 0;
  }
  block[used++] = 0x80;
  if (used > 56) {
    memset(block + used, 0, 64 - used);
    sha_block(state, block);
    used = 0;
  }
  memset(block + used, 0, 64 - used);
  for (int i = 0; i < 8; i++) block[56 + i] = (uint8_t)((uint64_t)size * 8 >> (56 - 8 * i));
  sha_block(state, block);
  for (int i = 0; i < 32; i++) digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

static void hmac(const uint8_t *key, size_t key_size, const uint8_t *text, size_t size, uint8_t mac[32]) {
  uint8_t pad[64] = {0}, inner[32];
  if (key_size > 64)
    sha256(key, key_size, NULL, 0, pad);
  else
    memcpy(pad, key, key_size);
  for (int i = 0; i < 64; i++) pad[i] ^= 0x36;
  sha256(pad, 64, text, size, inner);
  for (int i = 0; i < 64; i++) pad[i] ^= 0x36 ^ 0x5c;
  sha256(pad, 64, inner, 32, mac);
}

/* -- messages ------------------------------------------------------------------------------------------- */

static void greeting(uint8_t *to, int type, const uint8_t body[32]) {
  memcpy(to, "DSML", 4);
  to[4] = VERSION;
  to[5] = (uint8_t)type;
  put(to + 6, 0, 2);
  memcpy(to + 8, body, 32);
}

/* PROOF or WELCOME: the MAC of a label (with its final zero), HELLO and CHALLENGE. */
static void proof(uint8_t *to, int type, const char *secret, size_t secret_size, const uint8_t *hello,
                  const uint8_t *challenge) {
  const char *label = type == PROOF ? "dsm leases: client" : "dsm leases: server";
  size_t size = strlen(label) + 1;
  uint8_t text[32 + 2 * GREETING], mac[32];
  memcpy(text, label, size);
  memcpy(text + size, hello, GREETING);
  memcpy(text + size + GREETING, challenge, GREETING);
  hmac((const uint8_t *)secret, secret_size, text, size + 2 * GREETING, mac);
  greeting(to, type, mac);
}

static void request(uint8_t *to, int op, uint32_t number, uint64_t payload, uint64_t offset, uint64_t count,
                    const uint8_t token[32]) {
  memset(to, 0, REQUEST);
  to[0] = (uint8_t)op;
  put(to + 4, number, 4);
  put(to + 8, payload, 8);
  put(to + 16, offset, 8);
  put(to + 24, count, 8);
  if (token) memcpy(to + 32, token, 32);
}

static struct reply read_reply(const uint8_t *from) {
  return (struct reply){.op = from[0],
                        .status = from[1],
                        .zero = (uint16_t)take(from + 2, 2),
                        .number = (uint32_t)take(from + 4, 4),
                        .payload = take(from + 8, 8),
                        .a = take(from + 16, 8),
                        .b = take(from + 24, 8)};
}

/* -- a connection --------------------------------------------------------------------------------------- */

static int server = -1;
static uint32_t last_number;

static void send_all(const void *from, size_t size) {
  for (const uint8_t *at = from; size;) {
    ssize_t sent = send(server, at, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) die("the connection broke");
    at += sent;
    size -= (size_t)sent;
  }
}

static void receive_all(void *to, size_t size) {
  for (uint8_t *at = to; size;) {
    ssize_t got = recv(server, at, size, MSG_WAITALL);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) die("the server closed the connection");
    at += got;
    size -= (size_t)got;
  }
}

static void shake_hands(void) {
  uint8_t hello[GREETING], answer[GREETING], mine[GREETING], expected[GREETING], nonce[32];
  const char *secret = getenv("DSM_SECRET");
  if (secret && !*secret) secret = NULL;
  if (getrandom(nonce, sizeof nonce, 0) != sizeof nonce) die("no random bytes");
  greeting(hello, HELLO, nonce);
  send_all(hello, GREETING);
  receive_all(answer, GREETING);
  if (memcmp(answer, "DSML", 4)) die("this is no lease server");
  if (answer[5] == CHALLENGE && answer[4] == VERSION) {
    if (!secret) die("the server asks for its secret; set DSM_SECRET");
    proof(mine, PROOF, secret, strlen(secret), hello, answer);
    proof(expected, WELCOME, secret, strlen(secret), hello, answer);
    send_all(mine, GREETING);
    receive_all(answer, GREETING);
    int different = 0; /* in constant time */
    for (int i = 0; i < GREETING; i++) different |= answer[i] ^ expected[i];
    if (!different) return;
  } else if (answer[5] == WELCOME && answer[4] == VERSION) {
    if (!secret) return;
    die("the server asks for no secret, and DSM_SECRET is set: it could be any server");
  }
  if (answer[5] == REFUSE && answer[6] == 1) die("the server has another secret");
  if (answer[5] == REFUSE && answer[6] == 3) die("the server has as many connections as it takes");
  die("the server refuses, or speaks another version");
}

static void open_connection(const char *host, const char *port) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
  if (getaddrinfo(host, port, &hints, &found)) die("there is no such host");
  for (struct addrinfo *each = found; each && server < 0; each = each->ai_next) {
    server = socket(each->ai_family, each->ai_socktype, each->ai_protocol);
    if (server >= 0 && connect(server, each->ai_addr, each->ai_addrlen)) {
      close(server);
      server = -1;
    }
  }
  freeaddrinfo(found);
  if (server < 0) die("nobody listens there");
  int on = 1;
  setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  shake_hands();
}

/* Ask, and return the reply with its payload, which the caller frees; ends the program when the server says no. */
static struct reply ask(int op, const uint8_t *token, uint64_t offset, uint64_t count, const void *data, uint64_t size,
                        uint8_t **answer) {
  uint8_t header[REPLY > REQUEST ? REPLY : REQUEST];
  uint32_t number = ++last_number;
  request(header, op, number, size, offset, count, token);
  send_all(header, REQUEST);
  send_all(data, size);
  receive_all(header, REPLY);
  struct reply reply = read_reply(header);
  uint64_t most = reply.status ? MAX_ERROR : op != OP_GET ? 4096 : count < MAX_GET ? count : MAX_GET;
  if (reply.op != op || reply.number != number || reply.zero || reply.payload > most) die("this is no answer");
  *answer = malloc(reply.payload + 1);
  if (!*answer) die("no memory");
  receive_all(*answer, reply.payload);
  (*answer)[reply.payload] = 0;
  if (reply.status) {
    fprintf(stderr, "lease_client: status %d: %s\n", reply.status, (char *)*answer);
    exit(1);
  }
  return reply;
}

/* -- test vectors --------------------------------------------------------------------------------------- */

enum { WORDS = 24, MAX_BYTES = 4096 };
static char words[WORDS][32], values[WORDS][2 * MAX_BYTES + 2];
static int lines;

static const char *value(const char *word) {
  for (int i = 0; i < lines; i++)
    if (!strcmp(words[i], word)) return values[i];
  fprintf(stderr, "lease_client: a case has no %s\n", word);
  exit(2);
}

static uint64_t number_of(const char *word) { return strtoull(value(word), NULL, 10); }

static size_t bytes_of(const char *word, uint8_t *to) {
  const char *text = value(word);
  size_t size = strcmp(text, "-") ? strlen(text) / 2 : 0;
  if (!unhex(text, to, size)) die("a case has bad digits");
  return size;
}

static void same(const char *what, bool is) {
  if (is) return;
  fprintf(stderr, "lease_client: case %s: %s is not as it should be\n", value("case"), what);
  exit(2);
}

static void check_bytes(const char *word, const uint8_t *made, size_t size) {
  static uint8_t expected[MAX_BYTES];
  same(word, bytes_of(word, expected) == size && !memcmp(expected, made, size));
}

static void check_request_and_reply(void) {
  static uint8_t made[REQUEST + MAX_BYTES], reply[MAX_BYTES];
  uint8_t token[32];
  bytes_of("id", token);
  bytes_of("key", token + 16);
  same("payload", strlen(value("payload")) / 2 <= MAX_BYTES - REQUEST);
  size_t size = bytes_of("payload", made + REQUEST);
  request(made, (int)number_of("op"), (uint32_t)number_of("number"), size, number_of("offset"), number_of("count"), token);
  check_bytes("request", made, REQUEST + size);
  size_t got = bytes_of("reply", reply);
  struct reply said = read_reply(reply);
  same("the reply", got == REPLY + said.payload && said.op == number_of("op") && said.number == number_of("number"));
  same("status", said.status == number_of("status"));
  same("a", said.a == number_of("a"));
  same("b", said.b == number_of("b"));
  check_bytes("answer", reply + REPLY, said.payload);
}

static void check_handshake(void) {
  static uint8_t secret[MAX_BYTES];
  uint8_t nonce[32] = {0}, hello[GREETING], challenge[GREETING], made[GREETING];
  size_t size = bytes_of("secret", secret);
  bytes_of("client-nonce", nonce);
  greeting(hello, HELLO, nonce);
  check_bytes("hello", hello, GREETING);
  if (!size) {
    memset(nonce, 0, sizeof nonce);
    greeting(made, WELCOME, nonce);
    check_bytes("welcome", made, GREETING);
    return;
  }
  bytes_of("server-nonce", nonce);
  greeting(challenge, CHALLENGE, nonce);
  check_bytes("challenge", challenge, GREETING);
  proof(made, PROOF, (const char *)secret, size, hello, challenge);
  check_bytes("proof", made, GREETING);
  proof(made, WELCOME, (const char *)secret, size, hello, challenge);
  check_bytes("welcome", made, GREETING);
}

static int check_vectors(const char *path) {
  static char line[2 * MAX_BYTES + 64];
  FILE *file = fopen(path, "r");
  if (!file) die("the vectors cannot be read");
  int cases = 0;
  for (bool more = true; more;) {
    more = fgets(line, sizeof line, file) != NULL;
    if (more && line[0] == '#') continue;
    if (more && line[0] != '\n') {
      if (lines == WORDS || sscanf(line, "%31s %8193s", words[lines], values[lines]) != 2) die("a bad line");
      lines++;
    } else if (lines) {
      bool is_handshake = false;
      for (int i = 0; i < lines; i++) is_handshake |= !strcmp(words[i], "hello");
      if (is_handshake)
        check_handshake();
      else
        check_request_and_reply();
      cases++;
      lines = 0;
    }
  }
  fclose(file);
  return cases;
}

/* -- the command ---------------------------------------------------------------------------------------- */

static void token_of(const char *text, uint8_t token[32]) {
  if (strlen(text) != 65 || text[32] != '.' || !unhex(text, token, 16) || !unhex(text + 33, token + 16, 16))
    die("this is no token");
}

int main(int argc, char **argv) {
  if (argc >= 3 && !strcmp(argv[1], "vectors")) {
    int cases = 0;
    for (int i = 2; i < argc; i++) cases += check_vectors(argv[i]);
    printf("%d cases passed\n", cases);
    return 0;
  }
  if (argc < 4) die("usage: lease_client HOST PORT lease|get|set|renew|release|ping ...; see the head of its source");
  const char *verb = argv[3];
  uint8_t token[32], *answer = NULL;
  uint64_t numbers[2] = {0};
  bool leases = !strcmp(verb, "lease");
  if (!leases && argc > 4) token_of(argv[4], token);
  for (int i = 0; i < 2; i++)
    if (argc > i + 5 - leases) numbers[i] = strtoull(argv[i + 5 - leases], NULL, 10);
  open_connection(argv[1], argv[2]);
  if (leases && argc == 6) {
    struct reply reply = ask(OP_LEASE, NULL, numbers[1], numbers[0], NULL, 0, &answer);
    if (reply.payload != 48) die("this is no answer");
    hex(answer, 16);
    printf(".");
    hex(answer + 16, 16);
    printf("\n");
  } else if (!strcmp(verb, "get") && argc == 7) {
    struct reply reply = ask(OP_GET, token, numbers[0], numbers[1], NULL, 0, &answer);
    fwrite(answer, 1, reply.payload, stdout);
  } else if (!strcmp(verb, "set") && argc == 7) {
    ask(OP_SET, token, numbers[0], strlen(argv[6]), argv[6], strlen(argv[6]), &answer);
  } else if (!strcmp(verb, "renew") && argc == 6) {
    ask(OP_RENEW, token, numbers[0], 0, NULL, 0, &answer);
  } else if (!strcmp(verb, "release") && argc == 5) {
    ask(OP_RELEASE, token, 0, 0, NULL, 0, &answer);
  } else if (!strcmp(verb, "ping") && argc == 4) {
    struct reply reply = ask(OP_PING, NULL, 0, 0, NULL, 0, &answer);
    printf("version %" PRIu64 "\n", reply.a);
  } else {
    die("these words are no request; see the head of the source");
  }
  free(answer);
  close(server);
  return 0;
}
