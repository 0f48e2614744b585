/* A crowd of websocket viewers for benchmarks, in one thread, doing as little as can be done with a frame.

   crowd PORT PATH GREETINGS STAGE_CHANNEL    compiled at run time by loadtests/bench/crowds.py; loadtests/crowd.py is the same in Python

   GREETINGS: a file, one line a viewer: the commands that it sends in one frame after the upgrade, separated by tabs. A viewer is ready when
   each has its reply. STAGE_CHANNEL ("-": none): the subscribe with id 2 is of this channel; its offsets must run on without gap or repetition.

   Commands come on stdin, one a line; each is answered by one line of JSON on stdout. The end of stdin ends the program.
     open COUNT AT_ONCE SECONDS_MAX            COUNT more viewers, at most AT_ONCE of them on their way in
     speak RATE SECONDS GRACE_S TEXT           viewers in turn send TEXT (%T nanoseconds, %N a number); counts what arrives, see `stamps`
     loop SECONDS MARK TEXT                    every viewer has one command under way; a reply with MARK is accepted
     storm SPREAD_S SECONDS_MAX                all are cut and come back within SPREAD_S, recovering the stage channel
     stage | close                             where the stage channel stands; all hang up, and greetings go on with the next line

   A delivery is a stamp `t=<nanoseconds>;` in whatever arrives; one in SAMPLE_EVERY is compared with the clock. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SAMPLE_EVERY 31 /* prime, so that it falls on all viewers in turn */
#define SAMPLES_MAX 4000000
#define VIEWERS_MAX 60000
#define PER_ADDRESS 10000 /* source ports of one loopback address */
#define READ_BYTES (1 << 18)
#define GREETINGS_BYTES_MAX (1 << 26)
#define FRAME_BYTES_MAX (1 << 20)
#define LATE_NS 5000000000ull /* client SDKs hang up when a command is unanswered for 5 s */
#define S 1000000000ull
#define KINDS_MAX 16

enum state { AWAY, WAITING, DIALLING, UPGRADING, GREETING, READY };
typedef struct {
  int fd;
  enum state state;
  int replies_left;
  uint32_t rest_bytes;
  unsigned char *rest;           /* of a frame that has not arrived whole */
  char *greeting;
  uint64_t due_ns, dialled_ns, greeted_ns, asked_ns;
  uint64_t offset;
  char epoch[32];
} Viewer;
typedef struct { char kind[32]; long count; } Error;

static Viewer *viewers;
static int size, ready, on_the_way, port, epoll;
static int next_greeting;
static char *path, stage_opening[300], *greetings[VIEWERS_MAX];
static unsigned char buffer[READ_BYTES];
static float *samples_ms;
static long samples, deliveries, refused, gaps, repeated, recovered, afresh, accepted, lost;
static Error errors[KINDS_MAX];
static uint64_t numbers = 1000;
static uint32_t mask_state = 2463534242u;
static const char *loop_text, *loop_mark;

static uint64_t now_ns(void) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); return t.tv_sec * S + t.tv_nsec; }
static uint32_t next_random(void) { mask_state ^= mask_state << 13; mask_state ^= mask_state >> 17; return mask_state ^= mask_state << 5; }
static void fail(const char *why) { perror(why); exit(1); }

static void sample(double ms) { if (samples < SAMPLES_MAX) samples_ms[samples++] = ms; }
static void note(const char *kind) {
  int i = 0;
  while (i < KINDS_MAX - 1 && errors[i].count && strcmp(errors[i].kind, kind)) i++;
  if (!errors[i].count) snprintf(errors[i].kind, sizeof errors[i].kind, "%s", kind);
  errors[i].count++;
}
static void reset_counts(void) {
  samples = deliveries = refused = recovered = afresh = accepted = lost = 0;
  memset(errors, 0, sizeof errors);
}

/* --- sockets ---------------------------------------------------------------------------------------------------------------------- */

static void hang_up(Viewer *v) {
  struct linger at_once = {1, 0}; /* a reset: no port is left waiting, and the server sees a line that was cut */
  setsockopt(v->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  close(v->fd);
  free(v->rest);
  v->rest = NULL;
  v->rest_bytes = 0;
  ready -= v->state == READY;
  on_the_way -= v->state != READY && v->state > WAITING;
  v->state = AWAY;
}
static void again(Viewer *v, const char *kind, double pause_s) {
  note(kind);
  hang_up(v);
  v->state = WAITING;
  v->due_ns = now_ns() + (uint64_t)((pause_s + next_random() / 4294967296.0) * S);
}
static void dial(Viewer *v) {
  int one = 1;
  uint32_t group = (v - viewers) / PER_ADDRESS;
  struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + group)};
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct epoll_event event = {.events = EPOLLOUT, .data.ptr = v};
  if ((v->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0) fail("socket");
  setsockopt(v->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(v->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  if (bind(v->fd, (void *)&from, sizeof from)) fail("bind");
  v->dialled_ns = now_ns();
  v->state = DIALLING;
  on_the_way++;
  if (connect(v->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) { again(v, "refused", 1); return; }
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, v->fd, &event)) fail("epoll_ctl");
}
static void put(Viewer *v, const unsigned char *bytes, size_t count) { /* small, and the line is free: it fits or the viewer is gone */
  if (send(v->fd, bytes, count, MSG_NOSIGNAL) != (ssize_t)count) again(v, "short_write", 1);
}
static void put_frame(Viewer *v, int opcode, const char *payload, size_t count) {
  unsigned char frame[8192], *mask;
  size_t head = 2;
  uint32_t key = next_random();
  if (count + 8 > sizeof frame) fail("a message too long for this client");
  frame[0] = 0x80 | opcode;
  if (count < 126) frame[1] = 0x80 | count;
  else { frame[1] = 0x80 | 126; frame[2] = count >> 8; frame[3] = count; head = 4; }
  mask = frame + head;
  memcpy(mask, &key, 4);
  for (size_t i = 0; i < count; i++) mask[4 + i] = payload[i] ^ mask[i & 3];
  put(v, frame, head + 4 + count);
}

/* --- what a viewer says ----------------------------------------------------------------------------------------------------------- */

static size_t fill(char *out, size_t room, const char *text) {
  size_t used = 0;
  numbers++;
  for (; *text && used + 32 < room; text++) {
    if (text[0] == '%' && text[1] == 'T') used += sprintf(out + used, "%llu", (unsigned long long)now_ns()), text++;
    else if (text[0] == '%' && text[1] == 'N') used += sprintf(out + used, "%llu", (unsigned long long)numbers), text++;
    else out[used++] = *text;
  }
  return used;
}
static void say(Viewer *v, const char *text) {
  char message[8000];
  size_t count = fill(message, sizeof message, text);
  v->asked_ns = now_ns();
  put_frame(v, 1, message, count);
}
static void greet(Viewer *v) {
  char message[8000];
  size_t used = 0;
  const char *afresh_mark = "\"recover\":false";
  v->replies_left = 0;
  for (char *c = v->greeting; *c && used + 200 < sizeof message; c++) {
    if (v->epoch[0] && !strncmp(c, afresh_mark, strlen(afresh_mark))) {
      used += sprintf(message + used, "\"recover\":true,\"epoch\":\"%s\",\"offset\":%llu", v->epoch, (unsigned long long)v->offset);
      c += strlen(afresh_mark) - 1;
    } else message[used++] = *c == '\t' ? '\n' : *c;
  }
  v->replies_left = 1;
  for (size_t i = 0; i < used; i++) v->replies_left += message[i] == '\n';
  v->greeted_ns = now_ns();
  v->state = GREETING;
  if (used) put_frame(v, 1, message, used);
  else v->replies_left = 0;
}
static void arrive(Viewer *v) {
  uint64_t now = now_ns();
  if (now - v->greeted_ns > LATE_NS) note("late");
  sample((now - v->dialled_ns) / 1e6);
  v->state = READY;
  on_the_way--;
  ready++;
}

/* --- what a viewer hears ---------------------------------------------------------------------------------------------------------- */

static void stamps(const char *text, size_t count) {
  const char *end = text + count, *at = text;
  while ((at = memmem(at, end - at, "t=", 2))) {
    const char *digit = at += 2;
    uint64_t sent_ns = 0;
    while (digit < end && *digit >= '0' && *digit <= '9') sent_ns = sent_ns * 10 + (*digit++ - '0');
    if (digit < end && *digit == ';' && digit - at >= 16 && ++deliveries % SAMPLE_EVERY == 0) sample(((double)now_ns() - sent_ns) / 1e6);
  }
}
static void step_to(Viewer *v, uint64_t offset) {
  if (offset <= v->offset) { repeated++; return; }
  gaps += offset != v->offset + 1;
  v->offset = offset;
}
static const char *find(const char *text, size_t count, const char *what) { return memmem(text, count, what, strlen(what)); }

static void take_subscribe(Viewer *v, const char *text, size_t count) {
  const char *mark = "\"offset\":", *end = text + count, *epoch = find(text, count, "\"epoch\":\""), *at = text;
  int is_whole = find(text, count, "\"recovered\":true") != NULL;
  int own = 0; /* the result names the request's offset once */
  uint64_t before = v->offset;
  if (epoch) sscanf(epoch + 9, "%31[^\"]", v->epoch);
  recovered += is_whole;
  afresh += !is_whole && find(text, count, "\"was_recovering\":true");
  while ((at = memmem(at, end - at, mark, strlen(mark)))) {
    uint64_t offset = strtoull(at += strlen(mark), NULL, 10);
    if (!is_whole) v->offset = offset; /* the stream's top; there are no publications */
    else if (offset != before || own++) step_to(v, offset);
  }
}
static void take_reply(Viewer *v, const char *text, size_t count) {
  const char *wrong = find(text, count, "\"error\":{\"code\":");
  char kind[32];
  if (wrong) { refused++; snprintf(kind, sizeof kind, "reply_%d", atoi(wrong + 16)); }
  if (wrong && v->state == READY) note(kind);
  if (v->state == GREETING) {
    if (wrong) { again(v, kind, 1); return; }
    if (stage_opening[0] && !strncmp(text, "{\"id\":2,", 8)) take_subscribe(v, text, count);
    if (--v->replies_left == 0) arrive(v);
  } else if (loop_text) {
    sample((now_ns() - v->asked_ns) / 1e6);
    if (find(text, count, loop_mark)) accepted++;
    else refused += !wrong;
    say(v, loop_text);
  }
}
static void take_message(Viewer *v, const char *text, size_t count) {
  if (count == 2 && text[0] == '{' && text[1] == '}') { put_frame(v, 1, "{}", 2); return; }
  if (count > 6 && !memcmp(text, "{\"id\":", 6)) { take_reply(v, text, count); return; }
  if (stage_opening[0] && count > strlen(stage_opening) && !memcmp(text, stage_opening, strlen(stage_opening))) {
    const char *offset = text + count - 1; /* the last field but the closing brackets; readings have none */
    while (offset > text && *offset == '}') offset--;
    while (offset > text && *offset >= '0' && *offset <= '9') offset--;
    if (offset > text + 9 && !memcmp(offset - 8, "\"offset\":", 9)) step_to(v, strtoull(offset + 1, NULL, 10));
  }
}
static void take_payload(Viewer *v, const char *text, size_t count) {
  const char *end = text + count;
  stamps(text, count);
  for (const char *line; text < end && v->state >= GREETING; text = line + 1) {
    if (!(line = memchr(text, '\n', end - text))) line = end;
    take_message(v, text, line - text);
  }
}
static void take_close(Viewer *v, const unsigned char *body, size_t count) {
  char kind[32];
  snprintf(kind, sizeof kind, "closed_%d", count < 2 ? 1005 : body[0] << 8 | body[1]);
  lost += v->state == READY;
  again(v, kind, 1);
}
/* Takes the frames that are whole; returns how many bytes they were. Continuations count as frames of their own: no server here fragments. */
static size_t take_frames(Viewer *v, unsigned char *bytes, size_t count) {
  size_t taken = 0;
  while (count - taken >= 2 && v->state >= GREETING) {
    unsigned char *frame = bytes + taken;
    size_t head = (frame[1] & 127) < 126 ? 2 : (frame[1] & 127) == 126 ? 4 : 10;
    uint64_t length = frame[1] & 127;
    if (count - taken < head) break;
    if (head > 2) { length = 0; for (size_t i = 2; i < head; i++) length = length << 8 | frame[i]; }
    if (length > FRAME_BYTES_MAX) { lost++; again(v, "frame_too_big", 1); break; }
    if (count - taken < head + length) break;
    taken += head + length;
    switch (frame[0] & 15) {
      case 0: case 1: case 2: take_payload(v, (char *)frame + head, length); break;
      case 8: take_close(v, frame + head, length); break;
      case 9: put_frame(v, 10, (char *)frame + head, length); break;
    }
  }
  return taken;
}
static void take_upgrade(Viewer *v, unsigned char **bytes, size_t *count) {
  char *end = memmem(*bytes, *count, "\r\n\r\n", 4);
  if (!end) return;
  int status = *count > 12 ? atoi((char *)*bytes + 9) : 0;
  if (status != 101) {
    char kind[32], *pause = NULL;
    for (char *c = (char *)*bytes; c < end && !pause; c++) if (!strncasecmp(c, "retry-after:", 12)) pause = c + 12;
    snprintf(kind, sizeof kind, "%d", status);
    again(v, kind, pause ? atoi(pause) : 1);
    return;
  }
  *count -= (unsigned char *)end + 4 - *bytes;
  *bytes = (unsigned char *)end + 4;
  greet(v);
  if (v->state == GREETING && !v->replies_left) arrive(v);
}
static void hear(Viewer *v, unsigned char *bytes, size_t count) {
  unsigned char *joined = NULL;
  if (v->rest) {
    if (!(joined = realloc(v->rest, v->rest_bytes + count))) fail("memory");
    memcpy(joined + v->rest_bytes, bytes, count);
    bytes = joined;
    count += v->rest_bytes;
    v->rest = NULL;
    v->rest_bytes = 0;
  }
  if (v->state == UPGRADING) take_upgrade(v, &bytes, &count);
  size_t taken = v->state >= GREETING ? take_frames(v, bytes, count) : 0;
  if (v->state >= UPGRADING && taken < count) {
    v->rest = malloc(count - taken);
    memcpy(v->rest, bytes + taken, v->rest_bytes = count - taken);
  }
  free(joined);
}
static void look(Viewer *v) {
  if (v->state == DIALLING) {
    char request[1024];
    int wrong = 0;
    socklen_t length = sizeof wrong;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = v};
    getsockopt(v->fd, SOL_SOCKET, SO_ERROR, &wrong, &length);
    if (wrong) { again(v, "refused", 1); return; }
    epoll_ctl(epoll, EPOLL_CTL_MOD, v->fd, &event);
    v->state = UPGRADING;
    int count = snprintf(request, sizeof request, /* the key is RFC 6455's own example: nobody here checks the answer to it */
                         "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n", path, port);
    put(v, (unsigned char *)request, count);
    return;
  }
  ssize_t count = recv(v->fd, buffer, sizeof buffer, 0);
  if (count > 0) hear(v, buffer, count);
  else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
    int was_ready = v->state == READY;
    lost += was_ready;
    again(v, was_ready ? "lost" : "reset", 1);
  }
}

/* --- the clock and the commands --------------------------------------------------------------------------------------------------- */

static int step(int wait_ms) { /* 1: a command waits on stdin */
  struct epoll_event events[512];
  int count = epoll_wait(epoll, events, 512, wait_ms), asked = 0;
  for (int i = 0; i < count; i++) {
    Viewer *v = events[i].data.ptr;
    if (!v) asked = 1;
    else if (v->state > WAITING) look(v);
  }
  return asked;
}
static void dial_due(int at_once) {
  uint64_t now = now_ns();
  for (int i = 0; i < size && on_the_way < at_once; i++)
    if (viewers[i].state == WAITING && viewers[i].due_ns <= now) dial(viewers + i);
}
static double seconds_since(uint64_t began) { return (now_ns() - began) / 1e9; }
static double cpu_s(void) { struct timespec t; clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static int by_size(const void *a, const void *b) { float x = *(float *)a, y = *(float *)b; return (x > y) - (x < y); }

/* Ends an answer that the caller has begun with `{...,`. */
static void answer(uint64_t began, double began_cpu_s) {
  double elapsed_s = seconds_since(began);
  qsort(samples_ms, samples, sizeof *samples_ms, by_size);
  printf("\"seconds\":%.4f,\"busy\":%.3f,\"samples\":%ld,\"ready\":%d,\"lost\":%ld,\"refused\":%ld,", elapsed_s,
         (cpu_s() - began_cpu_s) / elapsed_s, samples, ready, lost, refused);
  printf("\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,\"errors\":{", samples ? samples_ms[samples / 2] : 0,
         samples ? samples_ms[(long)(samples * 0.99)] : 0, samples ? samples_ms[samples - 1] : 0);
  for (int i = 0; i < KINDS_MAX && errors[i].count; i++) printf("%s\"%s\":%ld", i ? "," : "", errors[i].kind, errors[i].count);
  puts("}}");
}
static void gather(int at_once, double seconds_max) {
  for (uint64_t began = now_ns(); ready < size && seconds_since(began) < seconds_max; step(2)) dial_due(at_once);
}
static void run_open(const char *line) {
  int count = 0, at_once = 0;
  double seconds_max = 0, began_cpu_s = cpu_s();
  uint64_t began = now_ns();
  reset_counts();
  sscanf(line, "%d %d %lf", &count, &at_once, &seconds_max);
  for (; count > 0 && size < VIEWERS_MAX; count--, size++) {
    Viewer *v = viewers + size;
    *v = (Viewer){.state = WAITING, .greeting = next_greeting < VIEWERS_MAX ? greetings[next_greeting++] : ""}; /* due at once */
  }
  gather(at_once, seconds_max);
  printf("{");
  answer(began, began_cpu_s);
}
static void run_speak(const char *line) {
  double rate = 0, seconds = 0, grace_s = 0, behind_s = 0, began_cpu_s = cpu_s();
  int skip = 0;
  sscanf(line, "%lf %lf %lf %n", &rate, &seconds, &grace_s, &skip);
  long sent = 0, due = (long)(rate * seconds + 0.5), wanted = due * ready;
  reset_counts();
  uint64_t began = now_ns();
  while (seconds_since(began) < seconds + grace_s && (sent < due || seconds_since(began) < seconds || deliveries < wanted)) {
    double now_s = seconds_since(began);
    while (sent < due && sent / rate <= now_s) {
      Viewer *v = viewers + sent * 7919 % size;
      if (now_s - sent / rate > behind_s) behind_s = now_s - sent / rate;
      if (v->state == READY) say(v, line + skip);
      sent++;
    }
    double next_s = sent < due ? sent / rate : now_s < seconds ? seconds : seconds + grace_s;
    double wait_ms = (next_s - seconds_since(began)) * 1000;
    step(wait_ms < 0 ? 0 : wait_ms > 20 ? 20 : (int)wait_ms + 1);
  }
  printf("{\"sent\":%ld,\"deliveries\":%ld,\"wanted\":%ld,\"behind_ms\":%.1f,", sent, deliveries, wanted, behind_s * 1000);
  answer(began, began_cpu_s);
}
static void run_loop(const char *line) {
  static char mark[200];
  double seconds = 0, began_cpu_s = cpu_s();
  int skip = 0;
  sscanf(line, "%lf %199s %n", &seconds, mark, &skip);
  reset_counts();
  uint64_t began = now_ns();
  loop_mark = mark;
  loop_text = line + skip;
  for (int i = 0; i < size; i++) if (viewers[i].state == READY) say(viewers + i, loop_text);
  while (seconds_since(began) < seconds) step(1);
  loop_text = NULL; /* the last replies come unheeded */
  printf("{\"accepted\":%ld,", accepted);
  answer(began, began_cpu_s);
}
static void run_storm(const char *line) {
  double spread_s = 0, seconds_max = 0, began_cpu_s = cpu_s();
  uint64_t began = now_ns();
  sscanf(line, "%lf %lf", &spread_s, &seconds_max);
  reset_counts();
  for (int i = 0; i < size; i++) {
    if (viewers[i].state > WAITING) hang_up(viewers + i);
    viewers[i].state = WAITING;
    viewers[i].due_ns = began + (uint64_t)(next_random() / 4294967296.0 * spread_s * S);
  }
  gather(size, seconds_max);
  printf("{\"recovered\":%ld,\"afresh\":%ld,", recovered, afresh);
  answer(began, began_cpu_s);
}
static void run_stage(void) {
  uint64_t lowest = UINT64_MAX, highest = 0;
  for (int i = 0; i < size; i++) {
    if (viewers[i].offset < lowest) lowest = viewers[i].offset;
    if (viewers[i].offset > highest) highest = viewers[i].offset;
  }
  printf("{\"lowest\":%llu,\"highest\":%llu,\"gaps\":%ld,\"duplicates\":%ld,\"ready\":%d}\n", (unsigned long long)(size ? lowest : 0),
         (unsigned long long)highest, gaps, repeated, ready);
}
static void run_close(void) {
  for (int i = 0; i < size; i++) {
    if (viewers[i].state > WAITING) hang_up(viewers + i);
    viewers[i].state = AWAY;
  }
  size = 0;
  puts("{}");
}
static void read_greetings(const char *name) { /* those whom no line is left say nothing */
  FILE *file = fopen(name, "r");
  char *text = malloc(GREETINGS_BYTES_MAX), *line;
  if (!file || !text) fail(name);
  text[fread(text, 1, GREETINGS_BYTES_MAX - 1, file)] = 0;
  fclose(file);
  for (int i = 0; i < VIEWERS_MAX; i++) {
    line = strsep(&text, "\n");
    greetings[i] = line ? line : "";
  }
}
int main(int count, char **words) {
  char line[9000];
  struct rlimit files;
  if (count != 5) { fprintf(stderr, "crowd PORT PATH GREETINGS STAGE_CHANNEL\n"); return 2; }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  signal(SIGINT, SIG_IGN); /* whoever started us ends us */
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  port = atoi(words[1]);
  path = words[2];
  viewers = calloc(VIEWERS_MAX, sizeof *viewers);
  samples_ms = malloc(SAMPLES_MAX * sizeof *samples_ms);
  if (!viewers || !samples_ms) fail("memory");
  read_greetings(words[3]);
  if (strcmp(words[4], "-")) snprintf(stage_opening, sizeof stage_opening, "{\"push\":{\"channel\":\"%s\"", words[4]);
  mask_state ^= getpid();
  epoll = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event)) fail("stdin must be a pipe");
  setvbuf(stdin, NULL, _IONBF, 0); /* one command at a time: what follows must stay visible to epoll */
  for (;;) {
    if (!step(1000)) continue;
    if (!fgets(line, sizeof line, stdin)) return 0;
    line[strcspn(line, "\n")] = 0;
    if (!strncmp(line, "open ", 5)) run_open(line + 5);
    else if (!strncmp(line, "speak ", 6)) run_speak(line + 6);
    else if (!strncmp(line, "loop ", 5)) run_loop(line + 5);
    else if (!strncmp(line, "storm ", 6)) run_storm(line + 6);
    else if (!strcmp(line, "stage")) run_stage();
    else if (!strcmp(line, "close")) run_close();
    else puts("{\"unknown\":true}");
    fflush(stdout);
  }
}
