// Watches the state of one subject and the heartbeats, and asks decide.gateway where nothing proves the state.
//
// Simpler than "A gateway in ten steps" in docs/protocol.md: one subject without wildcards, all priorities but
// `critical` are alike, and nothing is reported.
#include "backpressure.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "state.h"

#define ASK_MS 250
#define LONGEST_SUBJECT (2 * MAX_KEY)
#define DEFAULT_RETRY_AFTER 30
#define LAST "{\"last_by_subj\":\"$KV.%s_state.%s\"}"

// A key of the bucket: how to ask for it, and its last write that was loaded.
typedef struct {
    char request[LONGEST_SUBJECT];
    unsigned long long revision;
    char written[64];  // by the server's clock
} stored;

struct backpressure {
    natsConnection *nc;
    natsSubscription *states, *heartbeats;
    char load_from[256], question[LONGEST_SUBJECT];
    pthread_mutex_t lock;  // NATS calls back in threads of its own
    stored state, heartbeat;
    watched watched;
    cJSON *answer;     // of decide.gateway
    double valid_until, ask_at;
    double credit;  // admissions saved up
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

bool backpressure_encode(char out[MAX_KEY], const char *subject) {
    const char *plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/.";
    size_t used = 0;
    for (out[0] = '\0'; *subject != '\0'; subject++) {
        if (used + 4 > MAX_KEY) return false;
        used += (size_t)snprintf(out + used, 4, strchr(plain, *subject) ? "%c" : "=%02X", (unsigned char)*subject);
    }
    return true;
}

// Whether one time of the server is after another: `2026-11-26T09:00:00.12Z`, with as many decimals as it needs.
static bool is_later(const char *time, const char *than) {
    const size_t seconds = strlen("2026-11-26T09:00:00");
    if (strlen(time) < seconds || strlen(than) < seconds) return strlen(time) >= seconds;
    int order = strncmp(time, than, seconds);
    return order != 0 ? order > 0 : strtod(time + seconds, NULL) > strtod(than + seconds, NULL);
}

// Whether a reply has a newer write of this key than the last one. A server that is late answers with an older one;
// one of a bucket that was created again has a lower revision and a later time.
static bool is_newer(stored *key, natsMsg *reply) {
    const char *revision = NULL, *written = NULL;
    natsMsgHeader_Get(reply, "Nats-Sequence", &revision);
    natsMsgHeader_Get(reply, "Nats-Time-Stamp", &written);
    if (revision == NULL || written == NULL) return false;  // there is no such key: keep what was there
    if (strtoull(revision, NULL, 10) <= key->revision && !is_later(written, key->written)) return false;
    key->revision = strtoull(revision, NULL, 10);
    snprintf(key->written, sizeof key->written, "%s", written);
    return true;
}

typedef enum { NO_ANSWER, NOTHING_NEW, LOADED } loading;

// Reads the stored value of a key, and stores it as one that arrived at `at` if it is a newer one.
static loading load(backpressure *bp, stored *key, double at) {
    natsMsg *reply = NULL;
    if (natsConnection_RequestString(&reply, bp->nc, bp->load_from, key->request, ASK_MS) != NATS_OK) return NO_ANSWER;
    pthread_mutex_lock(&bp->lock);
    loading result = is_newer(key, reply) ? LOADED : NOTHING_NEW;
    if (result == LOADED) {
        void (*put)(watched *, const char *, size_t, double) = key == &bp->state ? put_state : put_heartbeat;
        put(&bp->watched, natsMsg_GetData(reply), (size_t)natsMsg_GetDataLength(reply), at);
    }
    pthread_mutex_unlock(&bp->lock);
    natsMsg_Destroy(reply);
    return result;
}

// What arrives may not be stored yet, or never: replicas write with an expected revision. So it only wakes.
static void load_soon(backpressure *bp, stored *key, double at) {
    const int pauses_ms[] = {5, 15, 45, 135, 0};
    for (int i = 0; load(bp, key, at) != LOADED && pauses_ms[i] > 0; i++) nats_Sleep(pauses_ms[i]);
}

static void on_state(natsConnection *nc, natsSubscription *sub, natsMsg *msg, void *closure) {
    (void)nc, (void)sub;
    backpressure *bp = closure;
    load_soon(bp, &bp->state, now());
    natsMsg_Destroy(msg);
}

// It proves the last state: so that one must be here first, also where the subscription missed it.
static void on_heartbeat(natsConnection *nc, natsSubscription *sub, natsMsg *msg, void *closure) {
    (void)nc, (void)sub;
    backpressure *bp = closure;
    double at = now();
    if (load(bp, &bp->state, NEVER) != NO_ANSWER) load_soon(bp, &bp->heartbeat, at);
    natsMsg_Destroy(msg);
}

// A plain subscription needs no right to create consumers, and goes on where the bucket is deleted and created again.
backpressure *backpressure_open(natsConnection *nc, const char *name, const char *subject) {
    backpressure *bp = calloc(1, sizeof *bp);
    char key[MAX_KEY], subscribed[LONGEST_SUBJECT];
    if (bp == NULL || strlen(name) > 64 || !backpressure_encode(key, subject)) return NULL;
    bp->nc = nc;
    bp->watched = (watched){.subject = strdup(subject), .state_at = NEVER, .proved_at = NEVER, .left_at = INFINITY};
    pthread_mutex_init(&bp->lock, NULL);
    snprintf(bp->question, sizeof bp->question, "%s.v1.decide.gateway.%s", name, key);
    snprintf(subscribed, sizeof subscribed, "$KV.%s_state.%s", name, key);
    snprintf(bp->load_from, sizeof bp->load_from, "$JS.API.DIRECT.GET.KV_%s_state", name);
    snprintf(bp->state.request, sizeof bp->state.request, LAST, name, key);
    snprintf(bp->heartbeat.request, sizeof bp->heartbeat.request, LAST, name, "=heartbeat");
    if (natsConnection_Subscribe(&bp->states, nc, subscribed, on_state, bp) != NATS_OK) return NULL;
    snprintf(subscribed, sizeof subscribed, "$KV.%s_state.=heartbeat", name);
    if (natsConnection_Subscribe(&bp->heartbeats, nc, subscribed, on_heartbeat, bp) != NATS_OK) return NULL;
    load(bp, &bp->state, NEVER);
    return bp;
}

// The decision of a sidecar, for as long as it is valid. NULL if there is none: then only one caller a second waits.
static const cJSON *ask(backpressure *bp, double at) {
    natsMsg *reply = NULL;
    const char *code = NULL;
    if (at < bp->valid_until) return bp->answer;
    cJSON_Delete(bp->answer);
    bp->answer = NULL;
    if (at < bp->ask_at) return NULL;
    bp->ask_at = at + 0.7 + 0.6 * drand48();
    if (natsConnection_RequestString(&reply, bp->nc, bp->question, "{}", ASK_MS) != NATS_OK) return NULL;
    if (natsMsgHeader_Get(reply, "Nats-Service-Error-Code", &code) != NATS_OK)
        bp->answer = cJSON_ParseWithLength(natsMsg_GetData(reply), (size_t)natsMsg_GetDataLength(reply));
    else if (strcmp(code, "404") == 0 || strcmp(code, "400") == 0)
        bp->ask_at = at + 30;  // nobody watches the subject, or the question is wrong and stays so
    natsMsg_Destroy(reply);
    if (bp->answer != NULL) {
        bp->valid_until = at + fmin(number(bp->answer, "valid_for_ms", 0), 5000) / 1000;
        bp->ask_at = at;
    }
    return bp->answer;
}

int backpressure_admit(backpressure *bp, bool critical) {
    double ages_at, at = now();
    if (critical) return 0;
    pthread_mutex_lock(&bp->lock);
    double admit = share_now(&bp->watched, at, &ages_at);
    double retry_after = number(bp->watched.state, "retry_after_seconds", 0);
    pthread_mutex_unlock(&bp->lock);
    const cJSON *answer = at < ages_at ? NULL : ask(bp, at);
    if (answer != NULL) {
        admit = share(answer);
        retry_after = number(answer, "retry_after_seconds", 0);
    }
    bp->credit += admit;  // spreads the share evenly
    if (bp->credit >= 1) {
        bp->credit -= 1;
        return 0;
    }
    if (retry_after < 1) retry_after = DEFAULT_RETRY_AFTER;
    return (int)ceil(retry_after * (1 + 0.5 * drand48()));  // not all callers at the same time
}
