// The last state and the last heartbeat of the bucket, and what they mean at a time.
#ifndef STATE_H
#define STATE_H

#include <cjson/cJSON.h>
#include <math.h>
#include <stddef.h>

#define NEVER (-INFINITY)

typedef struct {
    const char *subject;
    cJSON *state;      // NULL: there is none, admit
    double state_at;   // when it arrived; NEVER: it was loaded, and its age is not known
    cJSON *heartbeat;  // NULL: none arrived yet
    double proved_at;  // when the last proving heartbeat arrived
    double left_at;    // when the last replica reported that it stops; INFINITY: it did not
} watched;

// Times are seconds of this machine's monotonic clock. What cannot be read is no state, and no heartbeat.
void put_state(watched *w, const char *json, size_t length, double at);
void put_heartbeat(watched *w, const char *json, size_t length, double at);

// The share of the requests to admit now, from 0 to 1. From `ages_at` on nothing proves the state any more.
double share_now(const watched *w, double now, double *ages_at);

// The share that a state, or a decision of the sidecar, names.
double share(const cJSON *of);
double number(const cJSON *of, const char *name, double otherwise);

#endif
