// Computes what a state of the bucket means: how it is proved, how it ages, and the share to admit. Without NATS.
//
// The numbers in comments are the steps of "A gateway in ten steps" in docs/protocol.md.
#include "state.h"

#include <stdbool.h>
#include <string.h>

double number(const cJSON *of, const char *name, double otherwise) {
    const cJSON *field = cJSON_GetObjectItemCaseSensitive(of, name);
    return cJSON_IsNumber(field) ? field->valuedouble : otherwise;
}

static const char *text(const cJSON *of, const char *name) {
    const char *value = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(of, name));
    return value != NULL ? value : "";
}

static bool is(const cJSON *of, const char *name, const char *value) { return strcmp(text(of, name), value) == 0; }

static bool overridden(const cJSON *state) {
    return cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(state, "override"));
}

double share(const cJSON *of) {  // 3; an action that you do not know is `continue`
    if (is(of, "action", "reject")) return 0;
    return is(of, "action", "throttle") ? number(of, "admit_ratio", 1) : 1;
}

void put_state(watched *w, const char *json, size_t length, double at) {
    cJSON *value = cJSON_ParseWithLength(json, length);
    if (!is(value, "subject", w->subject)) {  // deleted, or not a state (2, 10)
        cJSON_Delete(value);
        value = NULL;
    }
    cJSON_Delete(w->state);
    w->state = value;
    w->state_at = at;
}

// It proves something only where `sampled_at` moved since the last one of the same instance (6).
void put_heartbeat(watched *w, const char *json, size_t length, double at) {
    cJSON *value = cJSON_ParseWithLength(json, length);
    const char *sampled_at = text(value, "sampled_at");
    if (*text(value, "instance") == '\0') {
        cJSON_Delete(value);
        return;
    }
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(value, "leaving"))) {  // 8
        w->left_at = fmin(w->left_at, at);
    } else if (*sampled_at && is(w->heartbeat, "instance", text(value, "instance")) &&
               !is(w->heartbeat, "sampled_at", sampled_at)) {
        w->proved_at = at;
        w->left_at = INFINITY;
    }
    cJSON_Delete(w->heartbeat);
    w->heartbeat = value;
}

// When the state was last known to hold (6).
static double proof(const watched *w) {
    if (w->state == NULL) return w->proved_at;
    bool known = is(w->state, "freshness", "known") && !is(w->state, "status", "unknown");
    if (!known && !overridden(w->state))  // heartbeats do not renew it
        return w->state_at - number(w->state, "proof_age_ms", 30000) / 1000;
    bool newer = number(w->state, "schema", 0) > number(w->heartbeat, "schema", 0);
    return newer ? w->state_at : fmax(w->state_at, w->proved_at);
}

double share_now(const watched *w, double now, double *ages_at) {  // 7, 8
    const cJSON *state = w->state, *last = w->heartbeat;
    double proved_at = proof(w), base = share(state), between = number(last, "heartbeat_ms", 2000) / 1000;
    double interval = fmax(number(last, "interval_ms", 2000) / 1000, between);
    double stale_after = fmax(number(last, "stale_after_ms", 10000) / 1000, 3 * between);
    double unknown_after = fmax(number(last, "unknown_after_ms", 30000) / 1000, 2 * stale_after);
    double left_at = w->left_at > w->state_at ? w->left_at : INFINITY;  // else a replica wrote the state since
    double stale_at = fmin(proved_at + stale_after, left_at);
    double opens_at = fmin(proved_at + fmax(number(state, "hold_seconds", 10), 3 * interval), left_at);
    *ages_at = fmin(stale_at, opens_at);
    if (is(state, "on_unknown", "reject")) {
        bool unknown = is(state, "status", "unknown") || is(state, "freshness", "unknown");
        bool refused = now >= proved_at + unknown_after || (unknown && !overridden(state));
        return refused && !is(state, "mode", "observe") ? 0 : base;
    }
    if (is(state, "on_unknown", "continue")) return now >= stale_at ? 1 : base;
    return now < opens_at ? base : fmin(1, base + 0.25 * (now - opens_at));
}
