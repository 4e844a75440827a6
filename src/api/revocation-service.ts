import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { fieldInvalid } from '../domain/errors.ts';
import type { Revocation, RevocationStore, Wake } from '../domain/store.ts';
import type { Clock, Instant, Millis } from '../domain/time.ts';
import { RevocationService } from '../gen/leasehold/v1/revocation_service_pb.js';
import { service } from './call.ts';

export interface RevocationServiceOptions {
  clock: Clock;
  store: RevocationStore;
  wake: Wake;
  sleep: (ms: Millis, signal: AbortSignal) => Promise<void>;
}

/** Entries in one message. */
const batch = 1_000;
const heartbeat: Millis = 2_000;
/** Between two looks of one follower: many closes at once are one message. */
const leastPause: Millis = 10;
/** Longer than any transaction of ours can live (its time-outs are in storage/pool.ts). */
const commitWindow: Millis = 60_000;

export function revocationService({ clock, store, wake, sleep }: RevocationServiceOptions) {
  return service(RevocationService, {
    watchRevocations: async function* (request, { caller, signal }) {
      const { tenant } = caller;
      let woken = new AbortController();
      const off = wake.onTask((changed) => {
        if (changed === tenant) woken.abort();
      });
      try {
        let asOf = clock.now();
        let { position, horizon } = await store.begin(tenant, resumeFrom(request.afterPosition, asOf));
        for (;;) {
          const page = await store.after(tenant, position, batch);
          position = page.at(-1)?.position ?? position;
          if (page.length < batch) {
            yield { revocations: page.map(message), current: true, asOfTime: timestampFromMs(asOf) };
            break;
          }
          yield { revocations: page.map(message), current: false, asOfTime: timestampFromMs(asOf) };
        }
        const seen = new Map<number, number>();
        while (!signal.aborted) {
          woken = new AbortController();
          asOf = clock.now();
          const next = await store.tail(tenant, horizon, asOf - commitWindow);
          horizon = next.horizon;
          const fresh = next.entries.filter((entry) => !seen.has(entry.position));
          for (const [sent, at] of seen) if (at < asOf - 2 * commitWindow) seen.delete(sent);
          for (const entry of fresh) seen.set(entry.position, entry.revokedAt);
          yield { revocations: fresh.map(message), current: true, asOfTime: timestampFromMs(asOf) };
          await sleep(leastPause, signal);
          await sleep(heartbeat, AbortSignal.any([signal, woken.signal]));
        }
      } finally {
        off();
      }
    },
  });
}

/**
 * What a follower goes on from is a time, that of the newest revocation that it has heard of, in nanoseconds. It grows as
 * numbers of a sequence would, and tells nothing that `revoke_time` does not: the database's own positions are of all
 * tenants' revocations, and gaps between them would say how many others make. Numbers that earlier releases gave are far
 * smaller, and those releases refuse these.
 */
const perMs = 1_000_000n;

/**
 * Everything since then, and what may have been committed after it with an earlier time, is sent again. A time that is yet
 * to come is none of ours: everything is sent.
 */
function resumeFrom(afterPosition: bigint, now: Instant): Instant | undefined {
  if (afterPosition < 0n) throw fieldInvalid('after_position', 'is not a position of this feed; 0 begins at the start');
  const newest = Number(afterPosition / perMs);
  return newest === 0 || newest > now + commitWindow ? undefined : Math.min(newest, now) - commitWindow;
}

function message(entry: Revocation) {
  return {
    position: BigInt(entry.revokedAt) * perMs,
    subject:
      entry.taskId === undefined
        ? { case: 'leaseId' as const, value: entry.leaseId! }
        : { case: 'taskId' as const, value: entry.taskId },
    revokeTime: timestampFromMs(entry.revokedAt),
    forgetTime: timestampFromMs(entry.forgetAt),
  };
}
