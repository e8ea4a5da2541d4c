// May a gateway admit a request for one subject? Watches the subject's state, and asks where nothing proves it.
#ifndef BACKPRESSURE_H
#define BACKPRESSURE_H

#include <nats/nats.h>
#include <stdbool.h>

#define MAX_KEY 1025  // an encoded subject has at most 1,024 bytes

typedef struct backpressure backpressure;

// Starts to watch. `name` is that of the installation (`backpressure`), `subject` the filter subject of a consumer,
// without wildcards. NULL if the subject is too long or the subscriptions fail. NATS may still be away.
backpressure *backpressure_open(natsConnection *nc, const char *name, const char *subject);

// 0: admit. Otherwise refuse, with so many seconds as Retry-After. Takes no time while heartbeats arrive, else 250 ms
// at most, once a second. Call it from one thread.
int backpressure_admit(backpressure *bp, bool critical);

// The subject as the tail of a subject of the sidecar: `orders.*.created` is `orders.=2A.created`.
bool backpressure_encode(char out[MAX_KEY], const char *subject);

#endif
