/* The kernel's floor: whatever one viewer sends is sent to all, by a bare loop of send(), and nothing else happens.

   floor PORT    on the loopback; compiled at run time by loadtests/bench/servers.py. No batching, no parsing of what goes out, no queue:
   a viewer whose buffer is full misses the message. Understands just enough of a websocket for the crowd of the benchmark. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define VIEWERS_MAX 65536

static int viewers[VIEWERS_MAX], places[VIEWERS_MAX], count; /* file descriptors, and by file descriptor its place + 1; 0: not upgraded */

static void leave(int fd) {
  if (places[fd]) {
    int last = viewers[--count];
    viewers[places[fd] - 1] = last;
    places[last] = places[fd];
    places[fd] = 0;
  }
  close(fd);
}
static void upgrade(int fd) {
  static const char reply[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"; /* to RFC 6455's own example key */
  if (send(fd, reply, sizeof reply - 1, MSG_NOSIGNAL) < 0) { leave(fd); return; }
  viewers[count++] = fd;
  places[fd] = count;
}
static void broadcast(unsigned char *frame, ssize_t bytes) { /* one masked text frame of less than 64 KiB, whole */
  size_t head = (frame[1] & 127) < 126 ? 2 : 4, length = head == 2 ? frame[1] & 127 : (size_t)frame[2] << 8 | frame[3];
  unsigned char *mask = frame + head, *payload = mask + 4;
  if ((frame[0] & 15) != 1 || bytes < (ssize_t)(head + 4 + length)) return;
  for (size_t i = 0; i < length; i++) payload[i] ^= mask[i & 3];
  frame[1] &= 127;
  memmove(payload - head, frame, head); /* a server's frame has no mask: the head moves up to the payload */
  for (int i = 0; i < count; i++) send(viewers[i], payload - head, head + length, MSG_NOSIGNAL | MSG_DONTWAIT);
}
static void look(int fd) {
  static unsigned char bytes[70000];
  ssize_t got = recv(fd, bytes, sizeof bytes, 0);
  if (got <= 0) leave(fd);
  else if (places[fd]) broadcast(bytes, got);
  else upgrade(fd);
}
int main(int words, char **word) {
  int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(words > 1 ? atoi(word[1]) : 0), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (void *)&at, sizeof at) || listen(listener, 4096)) { perror("floor"); return 1; }
  epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    int found = epoll_wait(poll, events, 256, -1);
    for (int i = 0; i < found; i++) {
      if (events[i].data.fd != listener) { look(events[i].data.fd); continue; }
      for (int fd; (fd = accept(listener, NULL, NULL)) >= 0;) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        event.data.fd = fd;
        if (fd < VIEWERS_MAX && count < VIEWERS_MAX) epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
        else close(fd);
      }
    }
  }
}
