// A gateway over HTTP: POST /v1/decide publishes its body, or is answered with 503 and Retry-After. Prints the events.
//
//   cc -o gateway gateway.c backpressure.c state.c $(pkg-config --cflags --libs libnats libcjson) -lm -pthread
//   ./gateway nats://127.0.0.1:4222 beamline.router.v1.decide 8080
#define _GNU_SOURCE  // strcasestr
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "backpressure.h"
#include "state.h"

#define MAX_REQUEST 65536  // bytes; a longer one is refused
#define MAX_EVENT_SUBJECT (MAX_KEY + 128)

// Prints each event once, though core NATS may deliver it twice. For people only: states decide, not events.
static void on_event(natsConnection *nc, natsSubscription *sub, natsMsg *msg, void *closure) {
    (void)nc, (void)sub, (void)closure;
    static char last_epoch[64];
    static double last_seq;
    cJSON *event = cJSON_ParseWithLength(natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg));
    const char *epoch = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(event, "epoch"));
    double seq = number(event, "seq", 0);
    if (epoch != NULL && (strcmp(epoch, last_epoch) != 0 || seq > last_seq)) {
        snprintf(last_epoch, sizeof last_epoch, "%s", epoch);
        last_seq = seq;
        printf("%s seq %.0f\n", natsMsg_GetSubject(msg), seq);
        fflush(stdout);
    }
    cJSON_Delete(event);
    natsMsg_Destroy(msg);
}

// Reads a request and returns its body; NULL if it is too long, or a part does not come within a second.
static const char *read_request(int caller, char buffer[MAX_REQUEST + 1], size_t *length) {
    struct timeval second = {.tv_sec = 1};
    setsockopt(caller, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
    for (size_t used = 0; used < MAX_REQUEST;) {
        ssize_t n = recv(caller, buffer + used, MAX_REQUEST - used, 0);
        if (n <= 0) return NULL;
        buffer[used += (size_t)n] = '\0';
        const char *end = strstr(buffer, "\r\n\r\n"), *header = strcasestr(buffer, "\r\nContent-Length:");
        if (end == NULL) continue;
        *length = header != NULL && header < end ? strtoul(header + strlen("\r\nContent-Length:"), NULL, 10) : 0;
        if (*length <= used - (size_t)(end + 4 - buffer)) return end + 4;
    }
    return NULL;
}

static void answer(int caller, const char *status, int retry_after) {
    char line[64] = "", reply[256];
    if (retry_after > 0) snprintf(line, sizeof line, "Retry-After: %d\r\n", retry_after);
    snprintf(reply, sizeof reply, "HTTP/1.1 %s\r\n%sContent-Length: 0\r\nConnection: close\r\n\r\n", status, line);
    send(caller, reply, strlen(reply), MSG_NOSIGNAL);
}

static void handle(int caller, backpressure *bp, jsCtx *js, const char *subject) {
    static char buffer[MAX_REQUEST + 1];
    size_t length = 0;
    const char *body = read_request(caller, buffer, &length);
    bool critical = strncmp(buffer, "POST /v1/emergency ", strlen("POST /v1/emergency ")) == 0;
    bool known = critical || strncmp(buffer, "POST /v1/decide ", strlen("POST /v1/decide ")) == 0;
    int retry_after = body != NULL && known ? backpressure_admit(bp, critical) : 0;
    if (body == NULL)
        answer(caller, "400 Bad Request", 0);
    else if (!known)
        answer(caller, "404 Not Found", 0);
    else if (retry_after > 0)
        answer(caller, "503 Service Unavailable", retry_after);
    else if (js_Publish(NULL, js, subject, body, (int)length, NULL, NULL) == NATS_OK)
        answer(caller, "202 Accepted", 0);
    else
        answer(caller, "502 Bad Gateway", 0);
}

static int listen_on(const char *port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    int one = 1, server = socket(AF_INET, SOCK_STREAM, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    return bind(server, (struct sockaddr *)&at, sizeof at) == 0 && listen(server, 128) == 0 ? server : -1;
}

static void on_connected(natsConnection *nc, void *closure) { (void)nc, (void)closure; }

// It starts and serves while NATS is away: with a callback, connecting goes on in the background.
static natsStatus connect_to(const char *url, natsConnection **nc) {
    natsOptions *options = NULL;
    natsOptions_Create(&options);
    natsOptions_SetURL(options, url);
    natsOptions_SetCustomInboxPrefix(options, "_INBOX_gateway");  // what users.conf lets gateways subscribe to
    natsOptions_SetMaxReconnect(options, -1);
    natsOptions_SetReconnectWait(options, 500);
    natsOptions_SetRetryOnFailedConnect(options, true, on_connected, NULL);
    natsStatus status = natsConnection_Connect(nc, options);
    natsOptions_Destroy(options);
    return status == NATS_NOT_YET_CONNECTED ? NATS_OK : status;
}

int main(int argc, char **argv) {
    natsConnection *nc = NULL;
    natsSubscription *events = NULL;
    jsCtx *js = NULL;
    char key[MAX_KEY], event_subject[MAX_EVENT_SUBJECT];
    const char *name = getenv("BACKPRESSURE_NAME") ? getenv("BACKPRESSURE_NAME") : "backpressure";
    if (argc != 4) return fprintf(stderr, "usage: gateway NATS_URL SUBJECT PORT\n"), 2;
    srand48(time(NULL) ^ getpid());
    natsStatus status = connect_to(argv[1], &nc);
    if (status == NATS_OK) status = natsConnection_JetStream(&js, nc, NULL);
    if (status != NATS_OK) return fprintf(stderr, "%s: %s\n", argv[1], natsStatus_GetText(status)), 1;
    backpressure *bp = backpressure_open(nc, name, argv[2]);
    if (bp == NULL || !backpressure_encode(key, argv[2])) return fprintf(stderr, "cannot watch %s\n", argv[2]), 1;
    snprintf(event_subject, sizeof event_subject, "%s.v1.event.*.%s", name, key);
    natsConnection_Subscribe(&events, nc, event_subject, on_event, NULL);
    int server = listen_on(argv[3]);
    if (server < 0) return perror(argv[3]), 1;
    for (;;) {
        int caller = accept(server, NULL, NULL);
        if (caller < 0) continue;
        handle(caller, bp, js, argv[2]);
        close(caller);
    }
}
