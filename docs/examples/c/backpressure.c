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

struct backpressure {
    natsConnection *nc;
    natsSubscription *states, *heartbeats;
    char load_from[256], load_request[LONGEST_SUBJECT], question[LONGEST_SUBJECT];
    pthread_mutex_t lock;  // NATS calls back in threads of its own
    watched watched;
    char written[64];  // when the state was, by the server's clock: which one it is
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

// Reads the stored state, which arrived at `at` if it is a new one. -1: nobody answers, 1: it is new, 0: it is not.
static int load(backpressure *bp, double at) {
    natsMsg *reply = NULL;
    const char *written = NULL;
    if (natsConnection_RequestString(&reply, bp->nc, bp->load_from, bp->load_request, ASK_MS) != NATS_OK) return -1;
    pthread_mutex_lock(&bp->lock);
    natsMsgHeader_Get(reply, "Nats-Time-Stamp", &written);  // none: there is no such key, so keep what was there
    bool new = written != NULL && strcmp(written, bp->written) != 0;
    if (new) {
        snprintf(bp->written, sizeof bp->written, "%s", written);
        put_state(&bp->watched, natsMsg_GetData(reply), (size_t)natsMsg_GetDataLength(reply), at);
    }
    pthread_mutex_unlock(&bp->lock);
    natsMsg_Destroy(reply);
    return new;
}

// What arrives may not be stored yet, or never: replicas write with an expected revision. So it only wakes.
static void on_state(natsConnection *nc, natsSubscription *sub, natsMsg *msg, void *closure) {
    (void)nc, (void)sub;
    double at = now();
    const int pauses_ms[] = {5, 15, 45, 135, 0};
    for (int i = 0; load(closure, at) != 1 && pauses_ms[i] > 0; i++) nats_Sleep(pauses_ms[i]);
    natsMsg_Destroy(msg);
}

// It proves the last state: so that one must be here first, also where the subscription missed it.
static void on_heartbeat(natsConnection *nc, natsSubscription *sub, natsMsg *msg, void *closure) {
    (void)nc, (void)sub;
    backpressure *bp = closure;
    double at = now();
    if (load(bp, NEVER) >= 0) {
        pthread_mutex_lock(&bp->lock);
        put_heartbeat(&bp->watched, natsMsg_GetData(msg), (size_t)natsMsg_GetDataLength(msg), at);
        pthread_mutex_unlock(&bp->lock);
    }
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
    snprintf(bp->load_request, sizeof bp->load_request, "{\"last_by_subj\":\"$KV.%s_state.%s\"}", name, key);
    if (natsConnection_Subscribe(&bp->states, nc, subscribed, on_state, bp) != NATS_OK) return NULL;
    snprintf(subscribed, sizeof subscribed, "$KV.%s_state.=heartbeat", name);
    if (natsConnection_Subscribe(&bp->heartbeats, nc, subscribed, on_heartbeat, bp) != NATS_OK) return NULL;
    load(bp, NEVER);
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
