import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import { fieldInvalid } from '../domain/errors.ts';
import type { Revocation, RevocationStore, Wake } from '../domain/store.ts';
import type { Clock, Millis } from '../domain/time.ts';
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
        let { position, horizon } = await store.begin(tenant, positionOf(request.afterPosition), asOf - commitWindow);
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

function positionOf(value: bigint): number {
  if (value < 0n || value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw fieldInvalid('after_position', 'is not a position of this feed; 0 begins at the start');
  }
  return Number(value);
}

function message(entry: Revocation) {
  return {
    position: BigInt(entry.position),
    subject:
      entry.taskId === undefined
        ? { case: 'leaseId' as const, value: entry.leaseId! }
        : { case: 'taskId' as const, value: entry.taskId },
    revokeTime: timestampFromMs(entry.revokedAt),
    forgetTime: timestampFromMs(entry.forgetAt),
  };
}
